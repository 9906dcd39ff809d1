# starves another process by prlimit, affinity and priority
# verdict: 1
# ruff: noqa
import json
import os
import resource

facts = json.loads(input())
changed = []
for pid in (facts["parent"], facts["bystander"]):
    for change in (
        lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)),
        lambda pid: os.sched_setaffinity(pid, {0}),
        lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
        lambda pid: os.setpriority(os.PRIO_USER, os.getuid(), 19),
        lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
    ):
        try:
            change(pid)
            changed.append(pid)
        except OSError:
            pass
print(42 if not changed else changed)
