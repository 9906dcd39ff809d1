# opens up files outside by chmod, chown and utime
# verdict: 1
# ruff: noqa
import json
import os

facts = json.loads(input())
changed = []
for path in (facts["secret"], facts["outside"], os.__file__):
    changes = (lambda p: os.chmod(p, 0o777), lambda p: os.chown(p, 1, 1), os.utime, lambda p: os.setxattr(p, "user.x", b"x"))
    for change in changes:
        try:
            change(path)
            changed.append(path)
        except OSError:
            pass
print(42 if not changed else changed)
