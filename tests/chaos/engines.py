"""Cases 28 to 42: rollouts. An engine is disposable."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from case import Case, Seen
from world import Running, by_test

LONG = ("loop.groups=16", "loop.samples=8", "rollout.max_tokens=100", "loop.steps=30")  # nearly all the time is rollouts
ENGINE = "tests/e2e/test_engine.py"
IMITATION = ("algorithm.answers=recorded", "algorithm.loss=nll", "loop.samples=1", "loop.groups=16", "eval.tasks=16",
             "loop.steps=2000", "loop.save_every=500")  # fmt: skip


def back(run: Running, name: str) -> dict:
    events = run.events("engine", name=name, what="back")
    assert events, f"{name} did not come back: {run.rows('events')[-4:]}"
    return events[0]


def killed_while_idle(folder: Path) -> Seen:
    """In fine-tuning engines stand by, for the examination at the end."""
    run = Running(folder / "run", *IMITATION)
    run.step(20)
    struck = run.strike("rollout-1")
    run.until(lambda: run.events("engine", name="rollout-1", what="lost"))
    noticed = run.events("engine", name="rollout-1", what="lost")[0]["at"] - struck
    run.whole(2000)
    assert noticed < 5
    assert run.events("evaluation", when="after")
    back(run, "rollout-1")
    return Seen(f"noticed after {noticed:.1f} s, and replaced; the examination had both engines", lost="none")


def killed_while_generating(folder: Path) -> Seen:
    run = Running(folder / "run", *LONG)
    run.step(3)
    again = 0
    for _ in range(5):
        run.strike("rollout-0")
        run.until(lambda: run.events("engine", name="rollout-0", what="back"))
        again = sum(event["again"] for event in run.events("engine", name="rollout-0", what="lost"))
        if again:
            break
    audit = run.whole(30)
    assert again, "it was never struck while it owed something"
    return Seen(f"{again} tasks asked again, each once; {audit}", back(run, "rollout-0")["answered"], f"{again} answers")


def stopped_while_generating(folder: Path) -> Seen:
    run = Running(folder / "run", *LONG, "recovery.hung=4")
    run.step(3)
    struck = run.strike("rollout-0", signal.SIGSTOP)
    run.until(lambda: run.events("engine", name="rollout-0", what="lost"))
    noticed = run.events("engine", name="rollout-0", what="lost")[0]["at"] - struck
    audit = run.whole(30)
    stacks = (run.out / "logs" / "rollout-0.log").read_text(errors="replace")
    assert "most recent call first" in stacks, "its stacks are in its log"
    assert noticed < 4 * 2 + 3
    return Seen(f"noticed after {noticed:.1f} s (recovery.hung=4), stacks written; {audit}", back(run, "rollout-0")["answered"],
                "its answers")  # fmt: skip


def bar(run: Running, name: str) -> None:
    """From now on no process can take this place: what would be its log is a folder."""
    log = run.out / "logs" / f"{name}.log"
    log.rename(log.with_suffix(".old"))
    log.mkdir()


def all_dead(folder: Path) -> Seen:
    run = Running(folder / "run", "loop.steps=10000", "recovery.restarts=2")
    run.step(3)
    pids = [run.pid(name) for name in ("rollout-0", "rollout-1")]
    for name, pid in zip(("rollout-0", "rollout-1"), pids, strict=True):
        bar(run, name)
        os.kill(pid, signal.SIGKILL)
    struck = time.monotonic()
    code, text = run.end()
    seconds = time.monotonic() - struck
    assert code == 4, f"exit {code}: {text[-1500:]}"
    assert "engines are left" in text
    assert "Is a directory" in text, "the root cause is told"
    assert seconds < 60
    return Seen(f"exit 4 after {seconds:.0f} s: {re.search('[0-9] of [0-9] engines are left', text)[0]}, with the cause")


def never_comes_back(folder: Path) -> Seen:
    run = Running(folder / "run", "loop.steps=600", "recovery.restarts=2", "loop.save_every=100")
    run.step(3)
    pid = run.pid("rollout-1")
    bar(run, "rollout-1")
    os.kill(pid, signal.SIGKILL)
    run.until(lambda: run.events("engine", name="rollout-1", what="out"))
    at = len(run.rows())
    audit = run.whole(600)
    lost = len(run.events("engine", name="rollout-1", what="lost"))
    return Seen(f"left out after {lost} starts, at step {at} of 600; one engine did the rest; {audit}", lost="none")


def slow_to_start(folder: Path) -> Seen:
    run = Running(folder / "run", "recovery.hung=2", "loop.steps=20")
    run.whole(20)
    assert not run.events("engine", what="lost")
    return Seen("a start takes longer than recovery.hung=2; nobody was killed")


CASES = [
    Case(28, "engine SIGKILLed while idle", "noticed, replaced, given the weights before it answers", killed_while_idle, True),
    Case(29, "engine SIGKILLed while generating", "what it owed is asked again, exactly once", killed_while_generating, True),
    Case(30, "engine alive but hung (SIGSTOP)", "noticed within recovery.hung, stacks, killed, replaced",
         stopped_while_generating, True),
    Case(31, "all engines dead, none comes back", "exit 4 in bounded time, with the root cause", all_dead, True),
    Case(32, "an engine restarts forever", "left out after recovery.restarts; the run goes on", never_comes_back, True),
    Case(33, "an engine answers with old weights", "refused by version, the engine replaced",
         by_test("tests/test_fleet.py::test_an_engine_with_old_weights_is_replaced_and_its_answer_is_not_used")),
    Case(34, "weight sync interrupted half-way", "version not advanced, nothing answered until a whole sync",
         by_test(ENGINE), True),
    Case(35, "weights that the engine does not take", "told with the loader, nothing trained",
         by_test(ENGINE), True),
    Case(36, "NaN weights about to be pushed", "the push is refused", by_test("tests/e2e/test_learner.py", "-k", "nan"), True),
    Case(37, "log-probabilities of learner and engine differ", "the canary ends the run above its tolerance",
         by_test(ENGINE), True),
    Case(38, "empty or only truncated answers", "defined advantage, no division by 0",
         by_test("tests/test_credit.py", "tests/test_algorithms.py")),
    Case(39, "all groups without a signal", "counted (flat); with keep: differ a bounded search, then exit 4",
         by_test("tests/test_loop.py::test_a_run_in_which_every_group_is_dropped_ends")),
    Case(40, "engines faster than the learner", "at most (max_lag + 1) steps' worth in flight",
         by_test("tests/test_loop.py::test_no_sample_is_older_than_max_lag_and_some_are_as_old")),
    Case(41, "a sample older than max_lag", "cannot be: proved over random delays",
         by_test("tests/test_loop.py::test_no_sample_is_older_than_max_lag_and_some_are_as_old")),
    Case(42, "a health probe during the first compile", "a start has its own limit (recovery.start)", slow_to_start, True),
]  # fmt: skip
