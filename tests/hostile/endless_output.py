# prints without end
# verdict: 0
# ruff: noqa
import os

while True:
    os.write(1, b"42\n" * 10000)
