# reads environment and memory of its parent through /proc
# verdict: 1
# ruff: noqa
import json
import os

facts = json.loads(input())
read = []
for pid in (os.getppid(), 1, facts["parent"], facts["bystander"]):
    for name in ("environ", "mem", "cmdline", "maps", "fd/0"):
        try:
            read.append(open(f"/proc/{pid}/{name}", "rb").read(10))
        except OSError:
            pass
print(42 if not read else read)
