"""Cases 61 and 64 to 66: the driver may die at any moment, or be asked to stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
from case import Case, Seen
from world import Running

from rlreason import undertaker


def orphans(run: Running, driver: int) -> list[int]:
    """What lives of a run's processes: all carry the same token's path, or write into the run's logs."""
    found = []
    for process in psutil.process_iter():
        try:
            log = os.readlink(f"/proc/{process.pid}/fd/1")
            if log.startswith(str(run.out.resolve())) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return found


def gone(run: Running, marks: list[bytes], folders: list[Path], seconds: float = 20) -> float:
    """Seconds until nothing is left of a run whose driver has ended."""
    began = time.monotonic()
    while left := [*orphans(run, run.process.pid), *(f for f in folders if f.exists()),
                   *(p for mark, f in zip(marks, folders, strict=True) for p in undertaker.marked(mark, str(f)))]:  # fmt: skip
        assert time.monotonic() < began + seconds, f"still there: {left}"
        time.sleep(0.05)
    return time.monotonic() - began


def traces(run: Running) -> tuple[list[bytes], list[Path]]:
    """What tells the processes of this run from others: its token's path, and the folder that it is in."""
    entries = Path(f"/proc/{run.pid('learner-0')}/environ").read_bytes().split(b"\0")
    marks = [entry for entry in entries if entry.startswith(b"RAY_AUTH_TOKEN_PATH=")]
    return marks, [Path(os.fsdecode(mark.partition(b"=")[2])).parent for mark in marks]


def driver_killed(folder: Path) -> Seen:
    run = Running(folder / "run", "loop.steps=120")
    run.step(30)
    marks, folders = traces(run)
    run.process.kill()
    run.process.wait()
    seconds = gone(run, marks, folders)
    steps = len(run.rows())
    again = Running(folder / "run", "loop.steps=120")
    began = time.monotonic()
    again.until(lambda: len(again.events("start")) == 2)
    at = again.events("start")[-1]["step"]
    again.until(lambda: len(again.rows()) > at)
    recovery = time.monotonic() - began
    audit = again.whole(120)
    assert at >= steps - 5 - 1
    return Seen(f"nothing left of it after {seconds:.1f} s; the same command went on from step {at}; {audit}", recovery,
                f"{steps - at} steps")  # fmt: skip


def asked_to_stop(folder: Path, number: int = signal.SIGTERM) -> Seen:
    run = Running(folder / "run", "loop.steps=1000", "loop.save_every=0")
    run.step(10)
    marks, folders = traces(run)
    run.process.send_signal(number)
    began = time.monotonic()
    code, text = run.end(60)
    seconds = time.monotonic() - began
    assert code == 75, f"exit {code}: {text[-1500:]}"
    assert "the same command goes on" in text
    gone(run, marks, folders)
    steps = len(run.rows())
    assert (run.out / "checkpoints" / f"v{steps}" / "MANIFEST.json").exists(), "the last step is committed"
    return Seen(f"{signal.Signals(number).name}: exit 75 after {seconds:.1f} s, committed at step {steps}", lost="none")


def asked_to_stop_by_slurm(folder: Path) -> Seen:
    return asked_to_stop(folder, signal.SIGUSR1)


def asked_to_stop_while_starting(folder: Path) -> Seen:
    run = Running(folder / "run")
    run.until(lambda: (run.out / "logs" / "rollout-0.log").exists())
    run.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, text = run.end(60)
    seconds = time.monotonic() - began
    assert code == 75, f"exit {code}: {text[-1500:]}"
    assert "stopped while starting" in text
    assert seconds < 15
    gone(run, [], [])
    return Seen(f"exit 75 after {seconds:.1f} s, nothing left behind", lost="none")


def asked_to_stop_while_ray_starts(folder: Path) -> Seen:
    """Ray has a handler of its own for SIGTERM, which must not have it."""
    told = []
    for delay in (0.2, 1.0, 2.0):
        run = Running(folder / f"run-{delay}")
        run.until(lambda run=run: (run.out / "manifest.json").exists())  # type: ignore[misc]
        time.sleep(delay)
        run.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code, text = run.end(60)
        assert code == 75, f"exit {code}: {text[-1500:]}"
        told.append(f"{time.monotonic() - began:.1f} s")
        gone(run, [], [])
    return Seen(f"exit 75 after {', '.join(told)}, nothing left behind", lost="none")


def killed_while_ray_starts(folder: Path) -> Seen:
    """Ray's agents write a title over their environment; they are found by the log that they have open."""
    for turn, delay in enumerate((1.4, 1.7, 2.0, 2.3)):
        run = Running(folder / f"run-{turn}")
        run.until(lambda run=run: (run.out / "manifest.json").exists())  # type: ignore[misc]
        time.sleep(delay)
        below = [process.cmdline() for process in psutil.Process(run.process.pid).children()]
        watchers = [line for line in below if any(word.endswith("undertaker.py") for word in line)]
        run.process.kill()
        run.process.wait()
        gone(run, [os.fsencode(line[-2]) for line in watchers], [Path(line[-1]) for line in watchers], 5)
    return Seen("killed at four moments of its start: nothing left within 5 s of any", lost="none")


def interrupted_once(folder: Path) -> Seen:
    return asked_to_stop(folder, signal.SIGINT)


def interrupted_twice(folder: Path) -> Seen:
    run = Running(folder / "run", "loop.steps=1000", "loop.groups=64", "rollout.max_tokens=100")
    run.step(2)
    marks, folders = traces(run)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    run.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, text = run.end(60)
    seconds = time.monotonic() - began
    assert code == 130, f"exit {code}: {text[-1500:]}"
    assert seconds < 15
    gone(run, marks, folders)
    return Seen(f"exit 130 after {seconds:.1f} s; no process, no folder left")


CASES = [
    Case(64, "SIGTERM", "finish or abandon the step, commit, exit 75", asked_to_stop, True),
    Case(64, "SIGUSR1 (Slurm's warning)", "the same", asked_to_stop_by_slurm, True),
    Case(64, "SIGTERM while engines start", "exit 75 at once, nothing left", asked_to_stop_while_starting, True),
    Case(64, "SIGTERM while Ray starts", "the same", asked_to_stop_while_ray_starts, True),
    Case(65, "Ctrl-C once", "finish or abandon the step, commit, exit 75", interrupted_once, True),
    Case(65, "Ctrl-C twice", "end at once, exit 130, no process and no file left", interrupted_twice, True),
    Case(66, "the driver SIGKILLed", "nothing left of it; the same command resumes", driver_killed, True),
    Case(66, "the driver SIGKILLed while Ray starts", "nothing left of it", killed_while_ray_starts, True),
]
