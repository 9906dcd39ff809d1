# kills its parent and a process beside it
# verdict: 1
# ruff: noqa
import json
import os
import signal

facts = json.loads(input())
killed = []
for pid in (os.getppid(), facts["parent"], facts["bystander"], 1):
    if pid in (0, os.getpid()):
        continue
    for number in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
        try:
            os.kill(pid, number)
            killed.append(pid)
        except OSError:
            pass
print(42 if not killed else killed)
