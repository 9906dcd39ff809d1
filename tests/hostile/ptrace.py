# attaches to its parent as a debugger, and reads its memory
# verdict: 1
# ruff: noqa
import ctypes
import json
import os

facts = json.loads(input())
libc = ctypes.CDLL(None)
done = []
for pid in (os.getppid(), facts["parent"], facts["bystander"], 1):
    if libc.ptrace(16, pid, None, None) == 0 or libc.ptrace(0x4206, pid, None, None) == 0:
        done.append(pid)
    if libc.process_vm_readv(pid, (ctypes.c_char * 64)(), 1, (ctypes.c_char * 64)(), 1, 0) > 0:
        done.append(pid)
print(42 if not done else done)
