# does its work as the interpreter ends: atexit, excepthook, __del__
# verdict: 0
# ruff: noqa
import atexit
import sys
import time

sys.excepthook = lambda *a: time.sleep(3600)
atexit.register(time.sleep, 3600)


class Late:
    def __del__(self):
        print(43)


late = Late()
print(42)
raise ValueError
