"""The training loop. It knows neither Ray, vLLM, DeepSpeed nor torch: only who answers and who learns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rlreason.config import LoopConfig
from rlreason.errors import RolloutError
from rlreason.types import Group, Metrics, Task

FRUITLESS = 100  # steps' worth of groups in a row that may be dropped before the run gives up


class Rollout(Protocol):
    """Who answers: vLLM engines, recorded demonstrations, …"""

    async def sample(self, task: Task, n: int) -> Group: ...

    async def load(self, weights: Any, version: int) -> Any: ...


class Learner(Protocol):
    """Who learns. `version` counts the steps taken, and names the weights after them."""

    version: int

    async def step(self, groups: list[Group]) -> Metrics: ...

    async def publish(self) -> Any: ...

    async def save(self, cursor: int) -> None: ...


class Phases:
    """Where a step's time goes. Every moment belongs to a phase, so they add up to the wall clock."""

    def __init__(self) -> None:
        self.clock = asyncio.get_running_loop().time
        self.start = self.mark = self.clock()
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


async def train(
    config: LoopConfig,
    tasks: Iterator[Task],
    rollout: Rollout,
    learner: Learner,
    keep: Callable[[Group], bool] = lambda group: bool(group.judged()),
    log: Callable[[int, list[Group], Metrics], None] = lambda step, groups, metrics: None,
    stop: Callable[[], bool] = lambda: False,
    cursor: int = 0,
) -> int:
    """Train for `config.steps` steps, on groups at most `config.max_lag` weight versions old. Returns the new cursor.

    `rollout` holds the weights of `learner.version` on entry, and on return. `tasks` begins at `cursor`, which counts
    the tasks consumed: saved with the weights it is all that a resumed run needs, as what was pending is asked again.
    Where `tasks` ends, so does training, after a last step of what is left.

    `pending` holds the groups being answered, oldest first. It is topped up to `max_lag + 1` steps' worth and
    consumed in order, so a group waits behind at most `max_lag` steps: that is the whole staleness bound. With
    `max_lag = 0` nothing is in flight while the learner steps, and training is exactly on-policy.
    """
    window = (config.max_lag + 1) * config.groups
    pending: deque[asyncio.Task[Group]] = deque()
    phases, saved, ended = Phases(), learner.version, False
    try:
        while learner.version < config.steps and not (stop() or (ended and not pending)):
            batch: list[Group] = []
            begin, dropped, fruitless = cursor, 0, 0
            while len(batch) < config.groups and not stop():
                while len(batch) + len(pending) < window and not ended:
                    if (fresh := next(tasks, None)) is None:
                        ended = True
                    else:
                        pending.append(asyncio.create_task(rollout.sample(fresh, config.samples)))
                if not pending:
                    break
                group = await pending.popleft()
                cursor += 1
                if group.samples and keep(group):
                    batch.append(group)
                    fruitless = 0
                    continue
                dropped, fruitless = dropped + 1, fruitless + 1
                if fruitless > FRUITLESS * config.groups:
                    raise RolloutError(
                        f"the last {fruitless} groups were all dropped, so there is nothing to learn from: no answer could "
                        "be judged, no prompt fits tasks.max_prompt, or (algorithm.keep: differ) all answers to a task "
                        "earn the same"
                    )
            if not batch or (len(batch) < config.groups and (pending or not ended)):  # stopped midway: asked again
                cursor = begin
                break
            phases.end("rollout")
            lag = learner.version - min(s.version for g in batch for s in g.samples)
            metrics = await learner.step(batch)
            phases.end("train")
            await rollout.load(await learner.publish(), learner.version)
            phases.end("sync")
            if config.save_every and learner.version % config.save_every == 0:
                await learner.save(cursor)
                saved = learner.version
                phases.end("save")
            log(learner.version, batch, metrics | {"lag": lag, "dropped": dropped} | phases.lap())
            phases.end("log")
        if saved < learner.version:
            await learner.save(cursor)
        return cursor
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
