"""The training loop. It knows neither Ray, vLLM, DeepSpeed nor torch: only who answers and who learns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlreason.config import LoopConfig
from rlreason.errors import RolloutError, StorageError
from rlreason.types import Group, Metrics, Task

FRUITLESS = 100  # steps' worth of groups in a row that may be dropped before the run gives up
PATIENCE = 1.0  # seconds between two looks at whether to stop, while an answer is waited for


class WeightSource(Protocol):
    """Where weights come from. Whoever loads them publishes them first: nothing is published that nobody reads."""

    async def publish(self) -> Any:
        """Make the weights available to engines, and return the handle by which those read them."""


class Rollout(Protocol):
    """Who answers: vLLM engines, recorded demonstrations, …"""

    async def sample(self, task: Task, n: int) -> Group: ...

    async def load(self, source: WeightSource, version: int) -> Any: ...


class Learner(WeightSource, Protocol):
    """Who learns. `version` counts the steps taken, and names the weights after them."""

    version: int

    async def step(self, groups: list[Group]) -> Metrics: ...

    async def save(self, cursor: int, pending: Sequence[str]) -> None: ...


class Phases:
    """Where a step's time goes. Every moment belongs to a phase, so they add up to the wall clock."""

    def __init__(self, elapsed: float = 0.0) -> None:
        """`elapsed`: seconds before this."""
        self.clock = asyncio.get_running_loop().time
        self.mark = self.clock()
        self.start = self.mark - elapsed
        self.seconds: Metrics = {}

    def end(self, phase: str) -> None:
        """What passed since the last call was `phase`."""
        now = self.clock()
        self.seconds[f"time/{phase}"] = self.seconds.get(f"time/{phase}", 0.0) + now - self.mark
        self.mark = now

    def lap(self) -> Metrics:
        """The phases since the last lap, and their sum as `time/step`."""
        seconds, self.seconds = self.seconds, {}
        return seconds | {"time/step": sum(seconds.values()), "time/elapsed": self.mark - self.start}


@dataclass(frozen=True)
class Account:
    """What became, by the end of a step, of the tasks that were asked: by id, each in one of the three."""

    trained: list[str]
    dropped: dict[str, str]  # with the reason
    pending: list[str]  # being answered, oldest first


class Pending:
    """The groups that are being answered, oldest first."""

    def __init__(self, tasks: Iterator[Task], ask: Callable[[Task], Coroutine[Any, Any, Group]]):
        self.tasks, self.ask = tasks, ask
        self.queue: deque[tuple[str, asyncio.Task[Group]]] = deque()
        self.asked = 0  # tasks so far
        self.ended = False  # there are no more tasks

    def fill(self, size: int) -> None:
        """Ask until so many are in flight."""
        while len(self.queue) < size and not self.ended:
            if (task := next(self.tasks, None)) is None:
                self.ended = True
            else:
                self.queue.append((task.id, asyncio.create_task(self.ask(task))))
                self.asked += 1

    async def take(self, stop: Callable[[], bool]) -> tuple[str, Group] | None:
        """The oldest, with its task's id; None if the run is asked to stop first."""
        name, answer = self.queue[0]
        while not answer.done():
            if stop():
                return None
            await asyncio.wait({answer}, timeout=PATIENCE)
        group = answer.result()
        self.queue.popleft()
        return name, group

    def names(self) -> list[str]:
        return [name for name, _ in self.queue]

    async def drop(self) -> None:
        for _, answer in self.queue:
            answer.cancel()
        await asyncio.gather(*(answer for _, answer in self.queue), return_exceptions=True)


@dataclass
class Collected:
    """What was consumed for one step."""

    batch: list[Group] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)  # task -> the reason
    taken: list[str] = field(default_factory=list)  # the tasks of both, in order


async def collect(
    config: LoopConfig, pending: Pending, keep: Callable[[Group], bool], stop: Callable[[], bool]
) -> Collected:  # fmt: skip
    """A step's worth of groups that are kept; fewer where the tasks end, or the run is asked to stop."""
    found, fruitless = Collected(), 0
    while len(found.batch) < config.groups and not stop():
        pending.fill((config.max_lag + 1) * config.groups - len(found.batch))
        if not pending.queue or (oldest := await pending.take(stop)) is None:
            break
        name, group = oldest
        found.taken.append(name)
        if group.samples and keep(group):
            found.batch.append(group)
            fruitless = 0
            continue
        found.dropped[name] = "not kept" if group.judged() else "not judged" if group.samples else "prompt too long"
        fruitless += 1
        if fruitless > FRUITLESS * config.groups:
            raise RolloutError(
                f"the last {fruitless} groups were all dropped, so there is nothing to learn from: no answer could be judged, "
                "no prompt fits tasks.max_prompt, or (algorithm.keep: differ) all answers to a task earn the same"
            )
    return found


async def train(
    config: LoopConfig,
    tasks: Iterator[Task],
    rollout: Rollout,
    learner: Learner,
    keep: Callable[[Group], bool] = lambda group: bool(group.judged()),
    log: Callable[[int, list[Group], Metrics], None] = lambda step, groups, metrics: None,
    account: Callable[[int, Account], None] = lambda step, account: None,
    stop: Callable[[], bool] = lambda: False,
    unsaved: Callable[[StorageError], None] | None = None,
    cursor: int = 0,
    elapsed: float = 0.0,
) -> int:
    """Train for `config.steps` steps, on groups at most `config.max_lag` weight versions old. Returns the new cursor.

    `rollout` holds the weights of `learner.version` on entry, and on return. `tasks` begins at `cursor`, which counts
    the tasks consumed: saved with the weights it is all that a resumed run needs, as what was pending is asked again.
    Where `tasks` ends, so does training, after a last step of what is left. A checkpoint that cannot be written is
    `unsaved`'s to tell, and training goes on; but for the last one, or where there is no such function. `elapsed`:
    seconds that the run has trained before.

    `Pending` is topped up to `max_lag + 1` steps' worth and consumed in order, so a group waits behind at most `max_lag`
    steps: that is the whole staleness bound. With `max_lag = 0` nothing is in flight while the learner steps, and
    training is exactly on-policy.
    """
    pending = Pending(tasks, lambda task: rollout.sample(task, config.samples))
    owed: list[str] = []  # tasks that were asked, and that a run that goes on from here has to ask again
    phases, saved, begin = Phases(elapsed), learner.version, cursor
    try:
        while learner.version < config.steps and not (stop() or (pending.ended and not pending.queue)):
            found = await collect(config, pending, keep, stop)
            batch, whole = found.batch, pending.ended and not pending.queue
            if not batch or (len(batch) < config.groups and not whole):  # stopped midway: asked again
                owed = [*found.taken, *pending.names()]
                break
            cursor, owed = cursor + len(found.taken), pending.names()
            assert begin + pending.asked == cursor + len(owed), "every task asked is trained on, dropped or pending"
            phases.end("rollout")
            lag = learner.version - min(s.version for g in batch for s in g.samples)
            metrics = await learner.step(batch)
            phases.end("train")
            await rollout.load(learner, learner.version)
            phases.end("sync")
            account(learner.version, Account([group.task.id for group in batch], found.dropped, owed))
            log(learner.version, batch, metrics | {"lag": lag, "dropped": len(found.dropped)} | phases.lap())
            phases.end("log")
            if config.save_every and learner.version % config.save_every == 0:  # after its line is written, which it covers
                try:
                    await learner.save(cursor, owed)
                    saved = learner.version
                except StorageError as error:
                    if unsaved is None:
                        raise
                    unsaved(error)
                phases.end("save")
        if saved < learner.version:
            await learner.save(cursor, owed)
        return cursor
    finally:
        await pending.drop()
