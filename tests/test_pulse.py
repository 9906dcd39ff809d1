"""Signs of life: who is idle, who is hung, and a process that stands still ends."""

import asyncio
import os
import subprocess
import sys

import pytest
from test_loop import Jumping

from rlreason import pulse
from rlreason.errors import Lost
from rlreason.pulse import Pulse

HUNG = 30.0


class Patient:
    """A process with the pulse that a test says, by the seconds that have passed."""

    name = "a"

    def __init__(self, beats=lambda now: 0, open=lambda now: 0, dies=float("inf"), silent=float("inf")):
        self.beats, self.open, self.dies, self.silent = beats, open, dies, silent

    async def pulse(self, within):
        now = asyncio.get_running_loop().time()
        if now >= self.dies:
            raise Lost("a", "died")
        if now >= self.silent:
            await asyncio.sleep(within)
            raise Lost("a", f"has said nothing for {within:g} s", True)
        return Pulse(7, beats=self.beats(now), open=self.open(now), doing="step 3, micro-batch 2 of 4")


def watched(patient, owes=lambda now: False, seconds=1000.0):
    """How it was lost, and when; None if it was not, in so many seconds."""

    async def watch():
        now = asyncio.get_running_loop().time
        try:
            return await asyncio.wait_for(pulse.lost(patient, HUNG, lambda: owes(now())), seconds), now()
        except TimeoutError:
            return None, now()

    return Jumping().run_until_complete(watch())


def test_who_has_nothing_to_do_is_not_hung():
    assert watched(Patient())[0] is None


def test_who_works_on_and_on_is_not_hung():
    assert watched(Patient(beats=lambda now: now // (HUNG - 5), open=lambda now: 1), owes=lambda now: True)[0] is None


def test_an_open_call_of_which_nothing_comes_is_a_hang():
    lost, at = watched(Patient(open=lambda now: 1))
    assert lost.alive, "it has to be killed"
    assert str(lost) == ("a has made no progress for 30 s (process 7, step 3, micro-batch 2 of 4, 0.0 GiB); its stacks are in "
                         "its log")  # fmt: skip
    assert HUNG < at < 1.2 * HUNG


def test_an_answer_that_is_owed_and_was_never_begun_is_a_hang_too():
    """The call has not reached it, or its answer was lost on the way."""
    lost, at = watched(Patient(), owes=lambda now: True)
    assert lost.alive
    assert HUNG < at < 1.2 * HUNG


@pytest.mark.parametrize(("among", "most"), [(1, 51), (50, 51), (60, 42), (100_000, 34)])
def test_however_many_are_watched_few_a_second_are_asked(among, most):
    """100 seconds: every 2, every 2, every 2.4; and at least ten times within `hung`."""
    asked = []

    async def watch():
        try:
            await asyncio.wait_for(pulse.lost(Patient(beats=asked.append), HUNG, lambda: False, among), 100)
        except TimeoutError:
            return

    Jumping().run_until_complete(watch())
    assert most - 2 <= len(asked) <= most


def test_time_counts_from_when_there_is_something_to_do():
    lost, at = watched(Patient(), owes=lambda now: now > 100)
    assert lost.alive
    assert 100 + HUNG - 3 < at < 100 + 1.2 * HUNG


def test_the_last_beat_counts():
    lost, at = watched(Patient(beats=lambda now: min(now, 200) // 1, open=lambda now: 1))
    assert lost.alive
    assert 200 + HUNG - 3 < at < 200 + 1.2 * HUNG


def test_a_death_is_told_at_once_and_as_one():
    lost, at = watched(Patient(dies=50))
    assert not lost.alive
    assert 50 <= at < 53


def test_silence_is_given_its_time_and_no_more():
    lost, at = watched(Patient(silent=50))
    assert lost.alive
    assert "has said nothing for 30 s" in str(lost)
    assert 50 + HUNG <= at < 50 + HUNG + 3


# ---- a process that stands still ends ----

SLEEPS = """
import sys, time
from pathlib import Path
from rlreason import pulse

def sleeps_here():
    time.sleep(30)

with pulse.watchdog(0.6, "the start of something", Path(sys.argv[1]) if sys.argv[1] else None) as alive:
    for _ in range(8):  # longer than the limit in all
        time.sleep(0.15)
        alive()
    print("alive", flush=True)
    sleeps_here()
"""
BLOCKS = """
import asyncio, sys, time
from pathlib import Path
from rlreason import pulse

async def main():
    async with pulse.ticking(0.6, Path(sys.argv[1])):
        await asyncio.sleep(1.5)
        print("alive", flush=True)
        time.sleep(30)

asyncio.run(main())
"""
WELL = """
import asyncio, sys, threading, time
from pathlib import Path
from rlreason import pulse

async def main():
    async with pulse.ticking(0.3, Path(sys.argv[1])):
        await asyncio.sleep(1)

asyncio.run(main())
with pulse.watchdog(0.3, "nothing"):
    pass
time.sleep(1)  # nobody watches any more
print(threading.active_count())
"""


def ends(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=20, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_a_process_that_stands_still_writes_where_and_ends(tmp_path):
    run = ends(SLEEPS, tmp_path / "log")
    assert (run.returncode, run.stdout) == (1, "alive\n")
    assert run.stderr.splitlines() == [
        f"rlreason: this process has stood still for 0.6 s (the start of something); its stacks are in {tmp_path / 'log'}",
        "what was committed is kept, and the same command goes on from it",
    ]
    assert "in sleeps_here" in (tmp_path / "log").read_text()


def test_without_a_log_its_stacks_are_told_with_the_rest():
    run = ends(SLEEPS, "")
    assert run.returncode == 1
    assert "in sleeps_here" in run.stderr
    assert "(the start of something)\n" in run.stderr


def test_an_event_loop_that_is_blocked_ends_its_process(tmp_path):
    run = ends(BLOCKS, tmp_path / "log")
    assert (run.returncode, run.stdout) == (1, "alive\n")
    assert "(its event loop)" in run.stderr
    assert "in main" in (tmp_path / "log").read_text()


def test_what_is_over_is_watched_no_more(tmp_path):
    run = ends(WELL, tmp_path / "log")
    assert (run.returncode, run.stdout, run.stderr) == (0, "1\n", "")


# ---- the kernel's own account ----

CGROUPS = {
    "version 2": (
        "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.events",
        "low 0\nhigh 7\nmax 3\noom 4\noom_kill 3\noom_group_kill 9\n",
    ),
    "version 1": ("4:cpu,memory:/a\n0::/\n", "sys/fs/cgroup/memory/a/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    "no memory": ("1:cpu:/a\n", "sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill 3\n"),
}


@pytest.mark.parametrize("version", CGROUPS)
def test_what_the_kernel_killed_for_want_of_memory_is_counted(tmp_path, version):
    group, file, text = CGROUPS[version]
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / "proc" / "vmstat").write_text("nr_free_pages 5\noom_kill 2\nswap_ra 1\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(group)
    (tmp_path / file).write_text(text)
    assert pulse.oom_kills(tmp_path) == (2 if version == "no memory" else 5)


def test_where_the_kernel_says_nothing_there_is_nothing_to_count(tmp_path):
    assert pulse.oom_kills(tmp_path) == 0
    assert pulse.oom_kills() >= 0, "and what it says here can be read"


def test_a_process_says_what_it_is_doing():
    pulse.beat("judging")
    felt = pulse.feel("node", 3)
    assert (felt.pid, felt.node, felt.doing, felt.open) == (os.getpid(), "node", "judging", 3)
    assert felt.resident > 1e6
    before = felt.beats
    pulse.beat("judging")
    assert pulse.feel("node", 0).beats == before + 1
