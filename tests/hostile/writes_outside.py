# writes wherever it might be let
# verdict: 1
# ruff: noqa
import json
import os
import sys

facts = json.loads(input())
written = []
places = [
    facts["outside"],
    facts["repository"],
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/usr",
    "/usr/lib",
    "/etc",
    "/",
    "/root",
    "/run",
]
for place in places + sys.path:
    try:
        with open(os.path.join(place, "planted"), "w") as file:
            file.write("x")
        written.append(place)
    except OSError:
        pass
print(42 if not written else written)
