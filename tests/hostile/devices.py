# makes and opens devices
# verdict: 1
# ruff: noqa
import os

got = []
for path in ("/dev/mem", "/dev/kmem", "/dev/sda", "/dev/vda", "/dev/kvm", "/dev/fuse", "/dev/tty", "/dev/ptmx"):
    try:
        got.append(os.open(path, os.O_RDWR))
    except OSError:
        pass
try:
    os.mknod("disk", 0o60600, os.makedev(254, 0))
    got.append(os.open("disk", os.O_RDONLY))
except OSError:
    pass
print(42 if not got else got)
