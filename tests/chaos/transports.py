"""Cases 77 to 85: losses where weights are broadcast, in a tensor parallel engine, and where a device is shared."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
from case import Case, Seen
from world import Running

STEPS = 150  # enough that a lost engine is back before the last
BROADCAST = ("transport=broadcast", "loop.max_lag=1", "recovery.hung=20", f"loop.steps={STEPS}", "loop.save_every=10")
TP = ("rollout.workers=1", "rollout.vllm.tensor_parallel_size=2", "loop.steps=20", "recovery.hung=20")
GRACE = 3.0  # seconds in which the workers of a dead engine have ended


def back(run: Running, who: str) -> float:
    """Seconds from a loss to the next useful answer of an engine, or step of the learners."""
    event = run.events(who, what="back")[0]
    return event["answered"] if who == "engine" else event["seconds"]


def workers(run: Running, name: str) -> list[psutil.Process]:
    """The vLLM workers of an engine."""
    below = psutil.Process(run.pid(name)).children(recursive=True)
    return [
        p for p in below if "Worker" in p.name() or any("VllmWorker" in part or "Worker_TP" in part for part in p.cmdline())
    ]


def all_end(processes: list[psutil.Process]) -> float:
    """Seconds until all of them have ended."""
    began = time.monotonic()
    _, alive = psutil.wait_procs([p for p in processes if p.is_running()], timeout=GRACE)
    assert not alive, f"still there after {GRACE:g} s: {[' '.join(p.cmdline())[:80] for p in alive]}"
    return time.monotonic() - began


def engine_dies(folder: Path) -> Seen:
    run = Running(folder / "run", *BROADCAST)
    run.step(12)
    run.strike("rollout-1")
    run.until(lambda: run.events("engine", what="back"))
    assert not run.events("learners", what="lost"), "a dead engine is no loss of learners"
    return Seen(f"replaced by one that joins a group of its own; {run.whole(STEPS)}", back(run, "engine"), "answers in flight")


def learner_dies(folder: Path) -> Seen:
    run = Running(folder / "run", *BROADCAST)
    run.step(12)
    run.strike("learner-0")
    audit = run.whole(STEPS)
    assert not run.events("engine", what="lost"), "engines stay as they are"
    return Seen(
        f"learner replaced, engines kept and in a new group; {audit}", back(run, "learners"), "steps since the last checkpoint"
    )


def engine_then_learner_die(folder: Path) -> Seen:
    """The learner while the engine's successor waits for weights, so that the loss is found in the background."""
    run = Running(folder / "run", *BROADCAST, "rollout.workers=1")
    run.step(12)
    run.strike("rollout-0")
    run.until(lambda: run.events("engine", what="lost"))
    log = run.out / "logs" / "rollout-0.log"
    size = log.stat().st_size
    run.until(lambda: log.stat().st_size > size or run.events("engine", what="back"), 60)
    run.strike("learner-0")
    audit = run.whole(STEPS)
    assert len(run.events("learners", what="lost")) == 1
    return Seen(f"both replaced, one after the other; {audit}", back(run, "learners"), "steps since the last checkpoint")


def engine_stops(folder: Path) -> Seen:
    """Stopped where it stands: the broadcast waits for it, until its heartbeat is missed."""
    run = Running(folder / "run", *BROADCAST, "recovery.hung=5")
    run.step(12)
    run.strike("rollout-1", signal.SIGSTOP)
    run.until(lambda: run.events("engine", what="lost"))
    lost = run.events("engine", what="lost")
    assert [event["name"] for event in lost] == ["rollout-1"], lost
    audit = run.whole(STEPS)
    assert not run.events("learners", what="lost"), "the learner waits, and that is no fault of its own"
    return Seen(f"killed and replaced, nobody else; {audit}", back(run, "engine"), "answers in flight")


def wide_engine_dies(folder: Path) -> Seen:
    run = Running(folder / "run", *TP, "transport=broadcast")
    run.step(6)
    theirs = workers(run, "rollout-0")
    assert len(theirs) == 2, theirs
    run.strike("rollout-0")
    seconds = all_end(theirs)
    audit = run.whole(20)
    return Seen(
        f"its workers ended within {seconds:.1f} s, and it was replaced; {audit}", back(run, "engine"), "answers in flight"
    )


def wide_engine_loses_a_worker(folder: Path) -> Seen:
    run = Running(folder / "run", *TP, "transport=shm")
    run.step(6)
    theirs = workers(run, "rollout-0")
    theirs[1].kill()
    audit = run.whole(20)
    all_end(theirs)
    assert run.events("engine", what="lost"), "an engine without one of its workers is lost"
    return Seen(f"the engine was replaced as a whole; {audit}", back(run, "engine"), "answers in flight")


def wide_engine_dies_blocked(folder: Path) -> Seen:
    """Its workers wait in a broadcast for a learner that is stopped."""
    run = Running(folder / "run", *TP, "transport=broadcast", "recovery.hung=60")
    run.step(6)
    theirs, engine = workers(run, "rollout-0"), run.pid("rollout-0")
    run.strike("learner-0", signal.SIGSTOP)
    time.sleep(3.0)
    os.kill(engine, signal.SIGKILL)
    seconds = all_end(theirs)
    run.strike("learner-0", signal.SIGCONT)
    audit = run.whole(20)
    return Seen(f"workers ended within {seconds:.1f} s; {audit}", back(run, "engine"), "answers in flight")


def learner_of_wide_engine_dies(folder: Path) -> Seen:
    run = Running(folder / "run", *TP, "transport=broadcast", "loop.save_every=5")
    run.step(6)
    theirs = workers(run, "rollout-0")
    run.strike("learner-0")
    audit = run.whole(20)
    assert not run.events("engine", what="lost"), "the engine stays as it is"
    all_end(theirs)
    return Seen(
        f"learner replaced, and in a new group with both workers of the engine; {audit}", back(run, "learners"),
        "steps since the last checkpoint",
    )  # fmt: skip


def taking_turns(folder: Path) -> Seen:
    run = Running(folder / "run", "share=true", f"loop.steps={STEPS}")
    run.step(12)
    run.strike("rollout-0")
    run.until(lambda: run.events("engine", what="back"))
    run.step(25)
    run.strike("learner-0")
    audit = run.whole(STEPS)
    return Seen(f"engine and learner replaced; {audit}", back(run, "engine"), "steps since the last checkpoint")


CASES = [
    Case(77, "an engine dies, weights travel by broadcast", "replaced, no task twice, none lost", engine_dies, True),
    Case(78, "a learner dies, weights travel by broadcast", "all learners replaced, engines kept", learner_dies, True),
    Case(79, "an engine dies, and the learner while its successor starts", "both replaced", engine_then_learner_die, True),
    Case(80, "an engine is stopped, weights travel by broadcast", "killed and replaced, nobody else", engine_stops, True),
    Case(81, "a tensor parallel engine dies", "its workers end with it; replaced", wide_engine_dies, True),
    Case(82, "a worker of a tensor parallel engine dies", "the engine is replaced", wide_engine_loses_a_worker, True),
    Case(83, "a tensor parallel engine dies blocked in a broadcast", "its workers end with it", wide_engine_dies_blocked, True),
    Case(85, "a learner dies, its engine is tensor parallel", "replaced, engine kept", learner_of_wide_engine_dies, True),
    Case(84, "engine and learner die where they share a device", "both replaced", taking_turns, True),
]  # fmt: skip
