# reaches outside by links from its folder
# verdict: 1
# ruff: noqa
import json
import os

facts = json.loads(input())
reached = []
for number, target in enumerate((facts["secret"], "/etc/shadow", facts["outside"] + "/planted", "/proc/self/root")):
    for make in (os.symlink, os.link):
        try:
            make(target, f"link{number}{make.__name__}")
            reached.append(open(f"link{number}{make.__name__}", "a+").name)
        except OSError:
            pass
print(42 if not reached else reached)
