# mounts, unmounts, enters and leaves namespaces
# verdict: 1
# ruff: noqa
import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
here = os.getcwd().encode()
done = [
    name
    for name, result in (
        ("mount", libc.mount(b"tmpfs", here, b"tmpfs", 0, None)), ("proc", libc.mount(b"proc", here, b"proc", 0, None)),
        ("umount", libc.umount2(b"/usr", 2)), ("unshare user", libc.unshare(0x10000000)),
        ("unshare mount", libc.unshare(0x20000)), ("setns", libc.setns(0, 0)), ("pivot", libc.syscall(155, b".", b".")),
        ("remount", libc.mount(None, b"/", None, 0x1020, None)),
    )
    if result == 0
]  # fmt: skip
print(42 if not done else done)
