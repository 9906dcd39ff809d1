# reads a file outside that everybody may read, by many names
# verdict: 1
# ruff: noqa
import json
import os

path = json.loads(input())["secret"]
read = []
os.chdir("/")
for name in (path, "." + path, "/proc/self/root" + path, "/proc/self/cwd" + path, "/scratch/.." + path):
    try:
        read.append(open(name).read())
    except OSError:
        pass
print(42 if not read else read)
