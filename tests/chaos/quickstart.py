"""The quickstart under continuous faults: an engine killed every 45 s, a learner every 120 s, the driver twice. And with
each transport and placement, engines and a learner killed at fixed steps.

`python tests/chaos/quickstart.py [OUT]` prints what it comes to: the accuracy, the ledger, and the share of the time
that went into steps that were kept.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e"), str(ROOT)]

from case import Case, Seen  # noqa: E402
from real import command  # noqa: E402

from rlreason import ledger  # noqa: E402

ENGINE, LEARNER = 45.0, 120.0  # seconds between two kills
DRIVER = (60.0, 150.0)  # seconds after the start at which the driver is killed
ACCURACY = 0.93  # of the quickstart that is left alone: 0.965 [0.946, 0.978]
SHARE = 0.8
STEPS = {10: "rollout", 20: "learner", 35: "rollout"}  # of the second stage -> who is killed after it
GAP = 1e-5  # nats, between the learner's and the engine's log-probabilities
LIMIT = 1200.0


def actors(out: Path, role: str) -> list[int]:
    """The processes of Ray's that write a log of this role, in any stage."""
    found = []
    for process in psutil.process_iter():
        try:
            log = Path(os.readlink(f"/proc/{process.pid}/fd/1"))
            if log.is_relative_to(out.resolve()) and log.name.startswith(role) and process.cmdline()[0].startswith("ray::"):
                found.append(process.pid)
        except (OSError, IndexError, psutil.Error):
            continue
    return found


def times(every: float) -> Iterator[float]:
    at = every
    while True:
        yield at
        at += every


def kill(processes: list[int]) -> bool:
    for process in random.sample(processes, min(1, len(processes))):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            return False
    return bool(processes)


def rows(out: Path, stage: str = "*") -> list[dict]:
    files = sorted(out.glob(f"{stage}/metrics.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def under_faults(folder: Path) -> Seen:
    out, began = folder / "run", time.monotonic()
    arguments = ("train", "recipes/quickstart.yaml", f"out={out}", "cold.loop.save_every=20", "reason.loop.save_every=1")
    engine, learner, driver = times(ENGINE), times(LEARNER), iter([*DRIVER, float("inf")])
    due = {"rollout": next(engine), "learner": next(learner), "driver": next(driver)}
    killed = dict.fromkeys(due, 0)
    process = start(*arguments)
    while process.poll() is None or process.returncode == -signal.SIGKILL:
        at = time.monotonic() - began
        assert at < LIMIT, f"not done after {LIMIT:g} s: {killed}"
        if process.poll() is not None:
            process = start(*arguments)
        if at >= due["rollout"]:
            killed["rollout"] += kill(actors(out, "rollout"))
            due["rollout"] = next(engine)
        if at >= due["learner"]:
            killed["learner"] += kill(actors(out, "learner"))
            due["learner"] = next(learner)
        if at >= due["driver"]:
            process.kill()
            process.wait()
            killed["driver"] += 1
            due["driver"] = next(driver)
        time.sleep(0.1)
    seconds = time.monotonic() - began
    result = whole(process, out)
    useful = sum(row["time/step"] for row in rows(out))
    told = ", ".join(f"{role} {number} times" for role, number in killed.items())
    return Seen(
        f"killed: {told}; {result}; {seconds:.0f} s, {useful / seconds:.2f} of it in steps that were kept (goal {SHARE})"
    )


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command, and read its output continuously: a full pipe would block it."""
    process = command(*arguments)
    process.said = []
    process.reader = threading.Thread(target=process.said.extend, args=(process.stdout,), daemon=True)
    process.reader.start()
    return process


def whole(process: subprocess.Popen[str], out: Path) -> str:
    """Check that the run has ended well, has learned, and has trained on every task once. Returns its accuracy."""
    process.reader.join()
    assert process.returncode == 0, f"exit {process.returncode}: {''.join(process.said)[-2000:]}"
    score = json.loads((out / "summary.json").read_text())["accuracy_after"]
    audits = {stage.parent.name: ledger.audit(stage.parent) for stage in out.glob("*/ledger.jsonl")}
    assert not any(audit.wrong for audit in audits.values()), audits
    assert score["mean"] >= ACCURACY, score
    return f"accuracy {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def placed(*more: str) -> Callable[[Path], Seen]:
    """The quickstart with these options for its second stage, in which `STEPS` are followed by kills."""

    def check(folder: Path) -> Seen:
        out, began, due = folder / "run", time.monotonic(), dict(STEPS)
        process = start("train", "recipes/quickstart.yaml", f"out={out}", "reason.loop.save_every=5", *more)
        while process.poll() is None:
            assert time.monotonic() - began < LIMIT, f"not done after {LIMIT:g} s; still to be killed: {due}"
            if due and len(rows(out, "reason")) >= min(due) and kill(actors(out, due[min(due)])):
                del due[min(due)]
            time.sleep(0.1)
        seconds = time.monotonic() - began
        result = whole(process, out)
        assert not due
        events = [json.loads(line) for line in (out / "reason" / "events.jsonl").read_text().splitlines()]
        lost = [event["name"] for event in events if event.get("what") == "lost"]
        assert len(lost) == len(STEPS), lost
        gap = max(row["policy_gap"] for row in rows(out, "reason"))
        assert gap < GAP, gap
        return Seen(f"lost: {', '.join(lost)}; {result}; largest policy_gap {gap:.1e}; {seconds:.0f} s")

    return check


CASES = [
    Case(76, "the quickstart with an engine killed every 45 s, a learner every 120 s, the driver twice",
         "the same accuracy, no task twice, none lost", under_faults, True),
    Case(86, "the quickstart by broadcast, engines and a learner killed", "the same accuracy, no task twice, none lost",
         placed("reason.transport=broadcast"), True),
    Case(87, "the quickstart with a tensor parallel engine, that and a learner killed",
         "the same accuracy, no task twice, none lost",
         placed("reason.transport=broadcast", "reason.rollout.workers=1", "reason.rollout.vllm.tensor_parallel_size=2"), True),
    Case(88, "the quickstart with engines and learners taking turns, some of both killed",
         "the same accuracy, no task twice, none lost", placed("reason.share=true"), True),
]  # fmt: skip

if __name__ == "__main__":
    os.chdir(ROOT)
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    print(under_faults(where).text)
    print(
        subprocess.run([sys.executable, "-m", "rlreason", "status", str(where / "run")], capture_output=True, text=True).stdout
    )
