"""The loop against a clock that jumps: two small implementations of its protocols, and no engine."""

import asyncio
import random
from dataclasses import asdict

import pytest

from rlreason import ledger
from rlreason.config import LoopConfig
from rlreason.errors import RolloutError, StorageError
from rlreason.loop import train
from rlreason.types import Group, Task


class Jumping(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


class Sleepy:
    """Rollout and learner in one: an answer takes a random time, a step one second, a sync a tenth."""

    def __init__(self, sample, seed=0):
        self.make, self.rng = sample, random.Random(seed)
        self.version = self.serving = 0
        self.asked, self.learned, self.saved = [], [], []

    async def sample(self, task, n):
        self.asked.append(task.id)
        version = self.serving
        await asyncio.sleep(self.rng.expovariate(1.0))
        return Group(task, [self.make(1, 1, float(i % 2), version=version) for i in range(n)])

    async def load(self, weights, version):
        await asyncio.sleep(0.1)
        self.serving = version

    async def publish(self):
        return None

    async def step(self, groups):
        await asyncio.sleep(1.0)
        self.learned.append([g.task.id for g in groups])
        self.version += 1
        return {}

    async def save(self, cursor, pending):
        self.saved.append((self.version, cursor))
        self.owed = pending


def run(both, keep=lambda g: True, cursor=0, stop=lambda: False, **config):
    logged, loop = [], Jumping()
    tasks = (Task(str(i), "", "") for i in range(cursor, 10**9))
    end = loop.run_until_complete(
        train(LoopConfig(**config), tasks, both, both, keep, lambda s, g, m: logged.append(m), stop=stop, cursor=cursor)
    )
    return logged, loop.now, end


@pytest.mark.parametrize("max_lag", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_no_sample_is_older_than_max_lag_and_some_are_as_old(sample, max_lag, seed):
    logged, _, _ = run(Sleepy(sample, seed), steps=30, groups=4, samples=2, max_lag=max_lag)
    assert max(m["lag"] for m in logged) == max_lag


def test_every_task_is_learned_from_once_and_in_order(sample):
    both = Sleepy(sample)
    run(both, steps=10, groups=3, samples=1, max_lag=2)
    assert [i for ids in both.learned for i in ids] == [str(i) for i in range(30)]


@pytest.mark.parametrize("max_lag", [0, 2])
def test_dropped_groups_are_replaced_and_the_bound_still_holds(sample, max_lag):
    both = Sleepy(sample)
    logged, _, _ = run(both, lambda g: int(g.task.id) % 3, steps=20, groups=4, samples=1, max_lag=max_lag)
    assert all(len(ids) == 4 for ids in both.learned)
    assert max(m["lag"] for m in logged) <= max_lag
    assert all(int(i) % 3 for ids in both.learned for i in ids)
    assert sum(m["dropped"] for m in logged) == sum(int(both.learned[-1][-1]) >= i for i in range(0, 10**4, 3))


def test_groups_without_an_answer_are_dropped_whatever_the_filter_says(sample):
    class Mute(Sleepy):
        async def sample(self, task, n):
            group = await super().sample(task, n)
            return Group(task, []) if task.id == "1" else group

    both = Mute(sample)
    run(both, steps=1, groups=3, samples=2)
    assert both.learned == [["0", "2", "3"]]


def test_a_run_in_which_every_group_is_dropped_ends(sample):
    with pytest.raises(RolloutError, match="nothing to learn from"):
        run(Sleepy(sample), lambda g: False, steps=1, groups=2, samples=2)


def test_one_good_group_does_not_hide_that_nothing_follows(sample):
    with pytest.raises(RolloutError, match="the last 201 groups"):
        run(Sleepy(sample), lambda g: g.task.id == "3", steps=1, groups=2, samples=2)


def test_asynchrony_buys_time(sample):
    seconds = [run(Sleepy(sample), steps=30, groups=8, samples=1, max_lag=lag)[1] for lag in (0, 1)]
    assert seconds[1] < 0.6 * seconds[0]


def test_phases_add_up_to_the_clock(sample):
    both = Sleepy(sample)
    logged, clock, _ = run(both, steps=7, groups=2, samples=1, max_lag=1, save_every=3)
    assert sum(m["time/step"] for m in logged) == pytest.approx(clock)
    for m in logged:
        phases = sum(m[f"time/{p}"] for p in ("rollout", "train", "sync", "save", "log") if f"time/{p}" in m)
        assert phases == pytest.approx(m["time/step"])
        assert (m["time/train"], m["time/sync"]) == pytest.approx((1.0, 0.1))


def test_checkpoints_at_their_steps_and_at_the_end(sample):
    both = Sleepy(sample)
    _, _, end = run(both, steps=7, groups=2, samples=1, save_every=3)
    assert both.saved == [(3, 6), (6, 12), (7, 14)]
    assert end == 14


def test_a_resumed_run_sees_the_tasks_that_an_uncut_one_sees(sample):
    whole, first = Sleepy(sample), Sleepy(sample)
    run(whole, steps=8, groups=3, samples=1, max_lag=1)
    _, _, cursor = run(first, steps=5, groups=3, samples=1, max_lag=1)
    second = Sleepy(sample)
    second.version = second.serving = 5
    run(second, steps=8, groups=3, samples=1, max_lag=1, cursor=cursor)
    assert first.learned + second.learned == whole.learned


def test_stop_ends_after_a_step_and_saves(sample):
    both = Sleepy(sample)
    run(both, stop=lambda: both.version >= 2, steps=9, groups=2, samples=1, max_lag=3)
    assert both.saved == [(2, 4)]


def test_stop_is_heard_while_groups_are_being_dropped(sample):
    both, calls = Sleepy(sample), []
    _, _, cursor = run(both, lambda g: False, stop=lambda: calls.append(1) or len(calls) > 20, steps=9, groups=2, samples=2)
    assert (both.learned, cursor) == ([], 0), "what was answered for an unfinished step is asked again"


def test_a_failing_rollout_is_not_swallowed_and_nothing_stays_pending(sample):
    class Broken(Sleepy):
        async def sample(self, task, n):
            if task.id == "5":
                raise RuntimeError("engine died")
            return await super().sample(task, n)

    async def main():
        both, tasks = Broken(sample), (Task(str(i), "", "") for i in range(99))
        with pytest.raises(RuntimeError, match="engine died"):
            await train(LoopConfig(steps=9, groups=2, max_lag=3), tasks, both, both)
        assert len(asyncio.all_tasks()) == 1

    Jumping().run_until_complete(main())


def test_the_ledger_adds_up_at_every_step(sample):
    """Every third task is dropped; with a lag of two, a third of the tasks is in flight at each step."""
    rows = []
    both, loop = Sleepy(sample), Jumping()
    config = LoopConfig(steps=20, groups=4, samples=2, max_lag=2)
    tasks = (Task(str(i), "", "") for i in range(10**9))
    loop.run_until_complete(
        train(config, tasks, both, both, lambda g: int(g.task.id) % 3 != 0,
              account=lambda step, account: rows.append({"step": step} | asdict(account)))
    )  # fmt: skip
    audit = ledger.check(rows)
    assert audit.wrong == []
    assert audit.trained == 80
    assert audit.dropped == {"not kept": audit.asked - 80 - audit.pending}
    assert audit.pending == len(both.owed) == 8


class Full(Sleepy):
    """Its disk is full from the second checkpoint to the fourth."""

    async def save(self, cursor, pending):
        if 2 <= self.version // 2 <= self.until:
            raise StorageError("the disk is full")
        await super().save(cursor, pending)


def test_a_checkpoint_that_cannot_be_written_does_not_end_training(sample):
    both, told = Full(sample), []
    both.until = 4
    loop = Jumping()
    tasks = (Task(str(i), "", "") for i in range(10**9))
    loop.run_until_complete(
        train(LoopConfig(steps=12, groups=2, samples=2, save_every=2), tasks, both, both, unsaved=told.append)
    )
    assert len(told) == 3
    assert [version for version, _ in both.saved] == [2, 10, 12]


def test_but_the_last_one_does(sample):
    both = Full(sample)
    both.until = 100
    tasks = (Task(str(i), "", "") for i in range(10**9))
    config = LoopConfig(steps=6, groups=2, samples=2, save_every=2)
    with pytest.raises(StorageError):
        Jumping().run_until_complete(train(config, tasks, both, both, unsaved=lambda error: None))
    assert both.version == 6, "it went on to the end"


def test_stop_is_heard_while_an_answer_takes_its_time(sample):
    class Slow(Sleepy):
        async def sample(self, task, n):
            await asyncio.sleep(10_000 if int(task.id) >= 8 else 1)
            return await super().sample(task, n)

    both, loop = Slow(sample), Jumping()
    tasks = (Task(str(i), "", "") for i in range(10**9))
    cursor = loop.run_until_complete(
        train(LoopConfig(steps=10, groups=4, samples=2), tasks, both, both, stop=lambda: loop.now > 100)
    )
    assert loop.now < 105
    assert (both.version, cursor) == (2, 8)
    assert both.owed == ["8", "9", "10", "11"], "what was in flight is asked again"
