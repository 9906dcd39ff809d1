# writes to the error stream without end
# verdict: 0
# ruff: noqa
import os

while True:
    os.write(2, b"ready" * 10000)
