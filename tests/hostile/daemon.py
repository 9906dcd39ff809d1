# leaves a daemon behind: two forks and a session of its own
# verdict: 0
# ruff: noqa
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(1)
    os._exit(0)
print(42)
