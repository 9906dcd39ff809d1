# takes memory without end
# verdict: 0
# ruff: noqa
hoard = []
while True:
    hoard.append(bytearray(1 << 24))
