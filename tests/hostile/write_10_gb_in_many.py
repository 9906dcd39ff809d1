# writes ten gigabytes to ten thousand files
# verdict: 1
# ruff: noqa
piece = bytes(1 << 20)
written = 0
for number in range(10_000):
    try:
        with open(f"big{number}", "wb", buffering=0) as file:
            written += file.write(piece)
    except OSError:
        break
print(42 if written < 64 << 20 else written)
