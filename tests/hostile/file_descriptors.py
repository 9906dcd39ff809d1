# opens files until there are no more
# verdict: 1
# ruff: noqa
import os

opened = []
try:
    while len(opened) < 100_000:
        opened.append(os.dup(0))
except OSError:
    pass
print(42 if len(opened) < 1000 else len(opened))
