"""Cases 43 to 48, 58 and 59: learners are one body, and what they do is exact."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from statistics import median

from case import Case, Seen
from world import Running, by_test

from rlreason import manifest

TWO = ("learner.workers=2", "rollout.workers=1", "loop.steps=40")


def weights(run: Running) -> str:
    return manifest.checksum(run.out / "weights" / "last" / "model.safetensors")


def plain(run: Running) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.rows()]


def diverges_now_and_then(folder: Path) -> Seen:
    run = Running(folder / "run", "algorithm.loss=real.nan_at", "algorithm.loss_options.at=[3,4]", "loop.steps=10")
    run.whole(10)
    skipped = [row["step"] for row in run.rows() if row["diverged"]]
    kept = sorted(path.name for path in (run.out / "diverged").iterdir())
    assert 1 <= len(skipped) <= 2, skipped  # a loss is called once for every micro-batch
    assert kept == [f"step-{step:06}.jsonl" for step in skipped], kept
    assert run.rows()[-1]["policy_gap"] < 1e-5, "the weights are numbers"
    assert run.rows()[-1]["grad_norm"] > 0
    return Seen(f"steps {skipped} skipped, their batches in diverged/; the others learned", lost=f"{len(skipped)} steps")


def diverges_for_good(folder: Path) -> Seen:
    calls = ",".join(map(str, range(3, 100)))  # a loss is called once for every micro-batch
    run = Running(folder / "run", "algorithm.loss=real.nan_at", f"algorithm.loss_options.at=[{calls}]", "recovery.diverged=3")
    code, text = run.end()
    assert code == 1, f"exit {code}: {text[-1500:]}"
    assert "the last 3 steps came to NaN or infinity" in text
    return Seen("exit 1 after the third in a row; the batches are named")


def both_die(folder: Path) -> Seen:
    """The only engine, and while it is replaced the learner: then the weights that it waits for are gone too."""
    run = Running(folder / "run", "rollout.workers=1", "recovery.hung=10")
    run.step(20)
    run.strike("rollout-0")
    time.sleep(1.0)
    run.strike("learner-0")
    audit = run.whole()
    back = run.events("learners", what="back")[0]
    return Seen(f"both replaced; {audit}", back["seconds"], "steps since the last checkpoint")


def a_rank_dies(folder: Path) -> Seen:
    """And what comes out is what comes out of a run that is left alone, to the bit."""
    whole = Running(folder / "whole", *TWO)
    whole.whole(40)
    run = Running(folder / "run", *TWO)
    run.step(13)
    run.strike("learner-1")
    audit = run.whole(40)
    assert plain(run) == plain(whole), "metrics differ"
    assert weights(run) == weights(whole), "weights differ"
    lost, back = run.events("learners", what="lost")[0], run.events("learners", what="back")[0]
    assert not run.events("engine", what="lost"), "engines stay as they are"
    return Seen(f"both ranks replaced, engine kept; metrics and weights equal to the bit; {audit}", back["seconds"],
                f"{lost['step'] - lost['committed']} steps")  # fmt: skip


def a_rank_hangs(folder: Path) -> Seen:
    run = Running(folder / "run", *TWO, "recovery.hung=4")
    run.step(13)
    struck = run.strike("learner-0", signal.SIGSTOP)
    audit = run.whole(40)
    lost = run.events("learners", what="lost")[0]
    assert lost["name"] == "learner-0", "the one that hangs is named, not one that waits for it"
    noticed = lost["at"] - struck
    assert noticed < 12
    return Seen(f"noticed after {noticed:.1f} s (recovery.hung=4), the right rank named; {audit}",
                run.events("learners", what="back")[0]["seconds"], f"{lost['step'] - lost['committed']} steps")  # fmt: skip


def dies_again_and_again(folder: Path) -> Seen:
    run = Running(folder / "run", "loop.save_every=0", "chaos.kill=learner:1.0", "recovery.retries=2")
    code, text = run.end()
    assert code == 1, f"exit {code}: {text[-1500:]}"
    assert "lost 3 times in a row without a new checkpoint" in text
    return Seen("exit 1 after the third loss without a new checkpoint, with the cause")


def limp(pid: int, over: threading.Event) -> None:
    """Stop a process most of the time, as a machine does that has something else to do."""
    while not over.wait(0.005):
        os.kill(pid, signal.SIGSTOP)
        over.wait(0.03)
        os.kill(pid, signal.SIGCONT)


def straggles(folder: Path) -> Seen:
    run = Running(folder / "run", *TWO, "loop.groups=8", "loop.samples=8", "loop.steps=60", "rollout.max_tokens=64")
    run.step(10)
    over, began = threading.Event(), len(run.rows())
    limping = threading.Thread(target=limp, args=(run.pid("learner-1"), over))
    limping.start()
    try:
        run.until(lambda: run.events("straggler"))
    finally:
        over.set()
        limping.join()
    audit = run.whole(60)
    times = [row["time/straggle"] for row in run.rows()]
    (event,) = [one for one in run.events("straggler") if one["step"] > began]
    assert event["name"] == "learner-1"
    assert min(times[event["step"] - 5 : event["step"]]) > 2
    assert not run.events("learners", what="lost"), "slow is not hung"
    return Seen(f"learner-1 named {event['step'] - began} steps after it began to limp, {event['times']:.1f} times as slow; "
                f"{median(times[:began]):.1f} times before, {median(times[event['step'] + 1 :]):.1f} after; {audit}",
                lost="none")  # fmt: skip


def in_flight(folder: Path) -> Seen:
    run = Running(folder / "run", "loop.max_lag=2", "loop.steps=80", "chaos.kill=learner:0.03,rollout:0.03", "chaos.seed=5")
    audit = run.whole(80)
    lags = {row["lag"] for row in run.rows()}
    assert max(lags) <= 2
    lost = len(run.events("learners", what="lost")), len(run.events("engine", what="lost"))
    assert min(lost) > 0, lost
    return Seen(f"learners lost {lost[0]} times, engines {lost[1]}; lag at most {max(lags):.0f}; {audit}")


CASES = [
    Case(43, "NaN in a loss, now and then", "step skipped, its batch kept, the run goes on", diverges_now_and_then, True),
    Case(43, "NaN in every step", "the run ends after recovery.diverged in a row", diverges_for_good, True),
    Case(45, "the only engine dies, and then the learner, in one phase", "both are replaced, whoever waits for whom", both_die,
         True),
    Case(45, "a learner rank SIGKILLed", "all ranks rebuilt from the last commit by the same process", a_rank_dies, True),
    Case(45, "a learner rank hangs (SIGSTOP)", "noticed within recovery.hung, named, rebuilt", a_rank_hangs, True),
    Case(45, "learners that die after every step", "bounded by recovery.retries", dies_again_and_again, True),
    Case(47, "a straggling rank", "told with its name after 5 steps at over twice the others' median; not killed",
         straggles, True),
    Case(48, "schedule and optimizer survive a resume", "learning rates and weights as uninterrupted",
         by_test("tests/e2e/test_runs.py::test_two_of_each_repeat_to_the_bit_across_a_restart_too"), True),
    Case(58, "N steps, stop, N steps", "2N steps, to the bit",
         by_test("tests/e2e/test_runs.py::test_a_run_that_is_stopped_goes_on_and_ends_as_if_it_had_not_been"), True),
    Case(59, "learners and engines killed, max_lag 2", "asked = trained + dropped + pending, none twice", in_flight, True),
]  # fmt: skip
