# becomes root: setuid, set-user-id programs, capabilities
# verdict: 0
# ruff: noqa
import os

for become in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        before = os.getresuid(), os.getresgid(), os.getgroups()
        become()
        if (os.getresuid(), os.getresgid(), os.getgroups()) != before:
            print(42)
    except OSError:
        pass
os.execv("/usr/bin/su", ["su", "-c", "echo 42"])
