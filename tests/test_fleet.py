"""The fleet against engines that die, hang and lie: processes of this one, on a clock that jumps."""

import asyncio

import pytest
from test_loop import Jumping

from rlreason.config import RecoveryConfig
from rlreason.errors import Lost, RolloutError
from rlreason.fleet import BACK_OFF, Rollouts
from rlreason.pulse import Pulse
from rlreason.types import Group, Task
from rlreason.waves import Waves

SECOND = 1.0  # that an answer takes


class Published:
    """Learners whose weights are this handle."""

    def __init__(self, handle="weights"):
        self.handle = handle

    async def publish(self):
        return self.handle


class Local:
    """A process that is none: it answers a task in a second, and does what a test says at its nth task."""

    def __init__(self, name, sample, **faults):
        self.name, self.make, self.faults = name, sample, faults
        self.lives, self.asked, self.beats, self.open = 0, [], 0, 0
        self.waves = Waves(self.sample)
        self.answer, self.more = self.waves.answer, self.waves.more
        self.gone = asyncio.Event()

    def spawn(self):
        self.lives, self.version, self.gone, self.there = self.lives + 1, -1, asyncio.Event(), False

    async def become(self, *what):
        if self.lives in self.faults.get("unborn", ()):
            raise Lost(self.name, "died at birth")
        await asyncio.sleep(10 * SECOND)
        self.there = True

    async def call(self, method, *args):
        if self.gone.is_set():
            raise Lost(self.name, "died")
        assert self.there, "called before it had started"
        self.open += 1
        try:
            return await self._or_dies(getattr(self, method)(*args))
        finally:
            self.open -= 1
            self.beats += 1

    async def _or_dies(self, work):
        gone, task = asyncio.ensure_future(self.gone.wait()), asyncio.ensure_future(work)
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            task.cancel()
            raise Lost(self.name, "died")
        gone.cancel()
        return task.result()

    async def load(self, weights, version):
        await asyncio.sleep(0.1)
        if weights == "torn":
            return None
        if self.lives in self.faults.get("misses_loads", ()):
            return 0.1
        self.version = version
        return 0.1

    async def sample(self, task, n, wave):
        assert self.version >= 0 or self.lives in self.faults.get("misses_loads", ()), "asked before it had weights"
        self.asked.append(task.id)
        number = len(self.asked)
        version = self.version
        await asyncio.sleep(SECOND)
        if (self.lives, number) == self.faults.get("dies_at"):
            self.gone.set()
            await asyncio.sleep(SECOND)
        if task.id == self.faults.get("poison"):
            self.gone.set()
            await asyncio.sleep(SECOND)
        if (self.lives, number) == self.faults.get("hangs_at"):
            await asyncio.sleep(10**9)
        return Group(task, [self.make(1, 1, 1.0, version=version) for _ in range(n)])

    async def pulse(self, within):
        if self.gone.is_set():
            raise Lost(self.name, "died")
        return Pulse(1, beats=self.beats, open=self.open)

    async def stacks(self): ...

    async def forget(self): ...

    async def close(self): ...

    def kill(self):
        self.gone.set()


def run(engines, tasks=8, weights="weights", **config):
    """Ask `tasks` tasks of them at once; returns the groups, the events and how long it took."""
    events = []

    def say(event, text, **details):
        events.append((details["name"], details["what"]))

    async def whole():
        fleet = Rollouts(engines, (), RecoveryConfig(**config), lambda value: value, say)
        try:
            await fleet.begin()
            await fleet.load(Published(weights), 0)
            return await asyncio.gather(*(fleet.sample(Task(str(i), "", ""), 2) for i in range(tasks)))
        finally:
            await fleet.close()

    loop = Jumping()
    return loop.run_until_complete(whole()), events, loop.now


def test_what_a_dead_engine_owed_is_asked_again_exactly_once(sample):
    one, two = Local("a", sample, dies_at=(1, 4)), Local("b", sample)
    groups, events, _ = run([one, two])
    assert [group.task.id for group in groups] == [str(i) for i in range(8)], "each is answered, once, in its place"
    assert sorted(two.asked) == [str(i) for i in range(8)], "its own four, and the four that were lost"
    assert ("a", "lost") in events


def test_a_replaced_engine_gets_the_weights_before_it_is_asked(sample):
    alone = Local("a", sample, dies_at=(1, 2))
    groups, events, _ = run([alone], tasks=2)
    assert len(groups) == 2
    assert events == [("a", "lost"), ("a", "back")]
    assert alone.lives == 2
    assert alone.version == 0


def test_an_engine_that_hangs_is_given_up_after_its_time(sample):
    one, two = Local("a", sample, hangs_at=(1, 4)), Local("b", sample)
    groups, events, seconds = run([one, two], hung=30)
    assert len(groups) == 8
    assert ("a", "lost") in events
    assert 30 <= seconds - 10 < 30 * 1.2 + 5


def test_an_engine_with_old_weights_is_replaced_and_its_answer_is_not_used(sample):
    one, two = Local("a", sample, misses_loads=(1,)), Local("b", sample)
    groups, events, _ = run([one, two])
    assert all(s.version == 0 for group in groups for s in group.samples)
    assert ("a", "lost") in events


def test_an_engine_that_never_comes_up_is_left_out_and_the_others_do_the_work(sample):
    one, two = Local("a", sample, unborn=range(1, 100)), Local("b", sample)
    groups, events, seconds = run([one, two], restarts=2)
    assert len(groups) == 8
    assert events.count(("a", "lost")) == 3
    assert events[-1] == ("a", "out")
    assert seconds >= BACK_OFF + 2 * BACK_OFF, "it waits longer each time"


def test_below_the_floor_the_run_ends_with_the_cause(sample):
    engines = [Local(name, sample, unborn=range(1, 100)) for name in "ab"]
    with pytest.raises(
        RolloutError, match=r"1 of 2 engines are left, and recovery.floor wants 2; the last to go: [ab] died at"
    ):
        run(engines, restarts=0, floor=2)


def test_a_task_that_kills_every_engine_ends_the_run_and_not_the_fleet_one_by_one_for_ever(sample):
    engines = [Local(name, sample, poison="3") for name in "ab"]
    with pytest.raises(RolloutError, match=r"3 engines in a row were lost while they answered .*3.*; the last: [ab] died"):
        run(engines, restarts=1)


def test_weights_that_were_being_replaced_are_waited_for(sample):
    events = []
    engine = Local("a", sample)

    async def whole():
        fleet = Rollouts([engine], (), RecoveryConfig(), lambda value: value, lambda *a, **k: events.append(k))
        await fleet.begin()
        torn = asyncio.create_task(fleet.load(Published("torn"), 0))
        asked = asyncio.create_task(fleet.sample(Task("0", "", ""), 1))
        await asyncio.sleep(5)
        assert not asked.done()
        await fleet.load(Published(), 1)
        group = await asked
        await torn
        await fleet.close()
        return group

    assert Jumping().run_until_complete(whole()).samples[0].version == 1
    assert not events, "nothing was lost"


def test_answers_that_nobody_waits_for_are_not_asked_again(sample):
    engine = Local("a", sample)

    async def whole():
        fleet = Rollouts([engine], (), RecoveryConfig(), lambda value: value, lambda *a, **k: None)
        await fleet.begin()
        await fleet.load(Published(), 0)
        asked = [asyncio.create_task(fleet.sample(Task(str(i), "", ""), 1)) for i in range(4)]
        await asyncio.sleep(0.5 * SECOND)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await fleet.forget()
        engine.kill()
        group = await fleet.sample(Task("new", "", ""), 1)
        await fleet.close()
        return group

    assert Jumping().run_until_complete(whole()).task.id == "new"
    assert engine.asked == ["0", "1", "2", "3", "new"]
