# calls the kernel directly where libc and Python would not: io_uring, bpf, perf, keys, x32, int 0x80
# verdict: 1
# ruff: noqa
import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
block = ctypes.create_string_buffer(256)
done = []
for name, number in (("io_uring", 425), ("open_tree", 428), ("fsopen", 430), ("pidfd_getfd", 438), ("clone3", 435)):
    if libc.syscall(number, block, block, 0) >= 0:
        done.append(name)
if os.uname().machine == "x86_64":
    for name, number in (("bpf", 321), ("perf", 298), ("userfaultfd", 323), ("keyctl", 250), ("x32 getpid", 0x40000000 + 39)):
        if libc.syscall(number, 0, block, 0, 0, 0) >= 0:
            done.append(name)
print(42 if not done else done)
