# signals another process through the kernel: fcntl owners, pidfd, queued signals
# verdict: 1
# ruff: noqa
import ctypes
import fcntl
import json
import os
import signal

facts = json.loads(input())
sent = []
reader, writer = os.pipe()
for command in (8, 15):
    try:
        fcntl.fcntl(reader, command, facts["bystander"] if command == 8 else bytes(8))
        sent.append(command)
    except OSError:
        pass
try:
    sent.append(signal.pidfd_send_signal(os.pidfd_open(facts["bystander"]), 9))
except OSError:
    pass
if ctypes.CDLL(None).sigqueue(facts["bystander"], 9, None) == 0:
    sent.append("queue")
print(42 if not sent else sent)
