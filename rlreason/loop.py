"""The training loop. It knows neither Ray, vLLM, DeepSpeed nor torch: only who answers and who learns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlreason.config import LoopConfig
from rlreason.errors import RolloutError, StorageError
from rlreason.types import Group, Metrics, Task

FRUITLESS = 100  # steps' worth of groups in a row that may be dropped before the run gives up
PATIENCE = 1.0  # seconds between two looks at whether to stop, while an answer is waited for


class Rollout(Protocol):
    """Who answers: vLLM engines, recorded demonstrations, …"""

    async def sample(self, task: Task, n: int) -> Group: ...

    async def load(self, weights: Any, version: int) -> Any: ...


class Learner(Protocol):
    """Who learns. `version` counts the steps taken, and names the weights after them."""

    version: int

    async def step(self, groups: list[Group]) -> Metrics: ...

    async def publish(self) -> Any: ...

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

    `pending` holds the groups being answered, oldest first. It is topped up to `max_lag + 1` steps' worth and
    consumed in order, so a group waits behind at most `max_lag` steps: that is the whole staleness bound. With
    `max_lag = 0` nothing is in flight while the learner steps, and training is exactly on-policy.
    """
    window = (config.max_lag + 1) * config.groups
    pending: deque[tuple[str, asyncio.Task[Group]]] = deque()
    owed: list[str] = []  # tasks that were asked, and that a run that goes on from here has to ask again
    phases, saved, ended, asked = Phases(elapsed), learner.version, False, cursor
    try:
        while learner.version < config.steps and not (stop() or (ended and not pending)):
            batch: list[Group] = []
            dropped: dict[str, str] = {}
            taken: list[str] = []
            begin, fruitless = cursor, 0
            while len(batch) < config.groups and not stop():
                while len(batch) + len(pending) < window and not ended:
                    if (fresh := next(tasks, None)) is None:
                        ended = True
                    else:
                        pending.append((fresh.id, asyncio.create_task(rollout.sample(fresh, config.samples))))
                        asked += 1
                if not pending:
                    break
                name, answer = pending[0]
                if not answer.done():
                    await asyncio.wait({answer}, timeout=PATIENCE)  # and a look at whether to stop
                    continue
                group = answer.result()
                pending.popleft()
                taken.append(name)
                cursor += 1
                assert asked == cursor + len(pending), "every task that is asked is trained on, dropped or pending"
                if group.samples and keep(group):
                    batch.append(group)
                    fruitless = 0
                    continue
                dropped[name] = "not kept" if group.judged() else "not judged" if group.samples else "prompt too long"
                fruitless += 1
                if fruitless > FRUITLESS * config.groups:
                    raise RolloutError(
                        f"the last {fruitless} groups were all dropped, so there is nothing to learn from: no answer could "
                        "be judged, no prompt fits tasks.max_prompt, or (algorithm.keep: differ) all answers to a task "
                        "earn the same"
                    )
            if not batch or (len(batch) < config.groups and (pending or not ended)):  # stopped midway: asked again
                cursor, owed = begin, [*taken, *(name for name, _ in pending)]
                break
            phases.end("rollout")
            lag = learner.version - min(s.version for g in batch for s in g.samples)
            metrics = await learner.step(batch)
            phases.end("train")
            await rollout.load(await learner.publish(), learner.version)
            phases.end("sync")
            owed = [name for name, _ in pending]
            account(learner.version, Account([group.task.id for group in batch], dropped, owed))
            log(learner.version, batch, metrics | {"lag": lag, "dropped": len(dropped)} | phases.lap())
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
        for _, answer in pending:
            answer.cancel()
        await asyncio.gather(*(answer for _, answer in pending), return_exceptions=True)
