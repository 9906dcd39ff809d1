"""Faults on purpose: who is struck, and when."""

import asyncio
import signal

import pytest
from test_loop import Jumping

from rlreason.chaos import Chaos, rates
from rlreason.config import ChaosConfig


class Struck:
    def __init__(self, name):
        self.name, self.signals = name, []

    def signal(self, number):
        self.signals.append(number)


def strikes(before=0, steps=400, **config):
    """What befell two engines and a learner, by step."""
    engines, ranks, told = [Struck("rollout-0"), Struck("rollout-1")], [Struck("learner-0")], []
    chaos = Chaos(ChaosConfig(**config), {"rollout": engines, "learner": ranks}, before, lambda *a, **k: told.append(k))
    found = []
    for step in range(1, steps + 1):
        chaos.step(step)
        found += [(step, one["name"], one["what"]) for one in told]
        told.clear()
    assert sum(len(one.signals) for one in [*engines, *ranks]) == len(found)
    return found


def test_the_chance_is_per_step_and_any_engine_may_be_struck():
    found = strikes(kill="rollout:0.1")
    assert 20 < len(found) < 65  # 40 expected; 6 standard deviations
    assert {name for _, name, _ in found} == {"rollout-0", "rollout-1"}
    assert {what for _, _, what in found} == {"SIGKILL"}


def test_hang_stops_and_does_not_kill():
    assert {(name, what) for _, name, what in strikes(hang="learner:0.2")} == {("learner-0", "SIGSTOP")}


def test_the_same_seed_strikes_the_same_and_another_does_not():
    assert strikes(kill="rollout:0.1", seed=3) == strikes(kill="rollout:0.1", seed=3)
    assert strikes(kill="rollout:0.1", seed=3) != strikes(kill="rollout:0.1", seed=4)


def test_a_step_that_is_done_again_after_a_fault_need_not_meet_it_again():
    """Else a run whose driver is killed at step 7 would be killed there for ever."""
    step = strikes(kill="learner:0.01")[0][0]
    again = [before for before in range(1, 20) if any(s == step for s, _, _ in strikes(before, step, kill="learner:0.01"))]
    assert len(again) < 5


def test_nothing_happens_unless_it_is_asked_for():
    assert strikes() == []


@pytest.mark.parametrize(
    ("text", "told"),
    [("engine:0.1", "'engine' is not one of"), ("rollout", "expected rollout:number"), ("rollout:x", "expected rollout:number"),
     ("rollout:0", "has to be above 0"), ("rollout:-1", "has to be above 0"), ("rollout:nan", "has to be above 0")],
)  # fmt: skip
def test_what_is_wrong_with_a_rate_is_told(text, told):
    with pytest.raises(ValueError, match=told):
        rates(text)


@pytest.mark.parametrize("text", ["", " ", "rollout:0.05, learner:1"])
def test_rates_are_read(text):
    assert rates(text) in ({}, {"rollout": 0.05, "learner": 1.0})


def test_by_the_clock_only_who_is_there_is_struck():
    """A teacher's stage has no engines, and one that only samples no learners."""

    async def whole():
        engine = Struck("rollout-0")
        with Chaos(ChaosConfig(every="rollout:10,learner:3"), {"rollout": [engine], "learner": []}, 0, lambda *a, **k: None):
            await asyncio.sleep(35)
        await asyncio.sleep(35)
        return engine.signals, [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    signals, left = Jumping().run_until_complete(whole())
    assert signals == [signal.SIGKILL] * 3, "and nobody after the end"
    assert not left


def test_a_role_that_nobody_has_is_passed_over():
    chaos = Chaos(ChaosConfig(kill="rollout:1,learner:1", every="rollout:1"), {}, 0, lambda *a, **k: None)
    chaos.step(1)
    chaos.start()
    assert not chaos.clocks
    assert chaos.faults == 0
