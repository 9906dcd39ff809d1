# writes ten gigabytes to a file
# verdict: 1
# ruff: noqa
piece = bytes(1 << 20)
written = 0
try:
    with open("big", "wb", buffering=0) as file:
        for _ in range(10_000):
            written += file.write(piece)
except OSError:
    pass
print(42 if written < 64 << 20 else written)
