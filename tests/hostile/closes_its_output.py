# closes its streams, right as it is, and goes on
# verdict: 0
# ruff: noqa
import os
import time

print(42, flush=True)
for fd in (0, 1, 2):
    os.close(fd)
time.sleep(3600)
