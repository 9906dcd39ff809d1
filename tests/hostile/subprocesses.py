# starts other programs, by subprocess, os.system, os.posix_spawn and multiprocessing
# verdict: 1
# ruff: noqa
import multiprocessing
import os
import subprocess


def attempts():
    yield lambda: subprocess.run(["/usr/bin/env"], check=True)
    yield lambda: os.posix_spawn("/usr/bin/env", ["env"], {})
    yield lambda: multiprocessing.Process(target=print).start()
    yield lambda: os.forkpty()


done = 0
for attempt in attempts():
    try:
        attempt()
        done += 1
    except OSError:
        pass
print(42 if done == 0 and os.system("true") != 0 else done)
