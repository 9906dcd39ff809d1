# multiplies itself by the raw system calls fork, vfork and clone, past libc
# verdict: 1
# ruff: noqa
import ctypes

libc = ctypes.CDLL(None, use_errno=True)
calls = [(57,), (58,), (56, 17, 0, 0, 0, 0)] if __import__("os").uname().machine == "x86_64" else [(220, 17, 0, 0, 0, 0)]
born = [libc.syscall(*call) for call in calls]
print(42 if all(pid < 0 for pid in born) else born)
