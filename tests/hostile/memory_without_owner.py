# takes memory that no limit of a process counts: memfd, System V, POSIX queues
# verdict: 1
# ruff: noqa
import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
got = []
try:
    got.append(os.memfd_create("hoard"))
except OSError:
    pass
if libc.shmget(0, 1 << 30, 0o1600) >= 0:
    got.append("shm")
if libc.msgget(0, 0o1600) >= 0:
    got.append("msg")
print(42 if not got else got)
