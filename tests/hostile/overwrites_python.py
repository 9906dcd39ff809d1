# replaces the interpreter's library and the harness
# verdict: 1
# ruff: noqa
import json
import os
import sys

changed = []
for path in (json.__file__, os.__file__, sys.executable, os.path.dirname(os.__file__) + "/sitecustomize.py"):
    for change in (lambda p: open(p, "a").close(), os.unlink, lambda p: os.rename(p, p + ".old"), lambda p: os.truncate(p, 0)):
        try:
            change(path)
            changed.append(path)
        except OSError:
            pass
print(42 if not changed else changed)
