"""What became of the tasks that were asked: pass rates, and which tasks are therefore asked again. Knows no engine."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rlreason import checkpoint
from rlreason.config import Config
from rlreason.errors import StorageError
from rlreason.evaluate import pass_rate
from rlreason.loop import Rollout, WeightSource
from rlreason.tasks import Tasks, origin
from rlreason.types import Group, Metrics, Task

FLOOR = 0.05  # the least chance of a task to be asked again: a rate that is out of date gets corrected


def hard(rate: float) -> float:
    """1 - pass rate: what is failed comes back more often (Kimi k1.5's prioritised sampling, 2501.12599)."""
    return min(1.0, max(FLOOR, 1 - rate))


def frontier(rate: float) -> float:
    """4 p (1 - p), the variance of a right-or-wrong reward over its greatest: what is passed half the time comes back."""
    return max(FLOOR, 4 * rate * (1 - rate))


CURRICULA: dict[str, Callable[[float], float]] = {"none": lambda rate: 1.0, "hard": hard, "frontier": frontier}


@dataclass(slots=True)
class Asked:
    """A task that was drawn from the stream, and what came of it."""

    task: Task
    position: int  # in the stream, of the task after it
    skipped: int  # tasks passed over since the one before it
    group: Group | None = None  # None while it is being answered


class History:
    """A rollout, the stream that it answers, and the filter that its groups pass, with an eye on all three.

    Tasks that are solved or seldom worth asking are passed over when the stream is drawn from, by their rates as of
    the last finished step, their epoch and the seed. So with `max_lag = 0` a resumed run draws what an uncut one
    draws; with more, those that were in flight at the checkpoint stand in it, and are asked again whatever their rates
    have become.

    The rates of a step's groups, kept or not, are a line of `tasks.jsonl`, written before the step's checkpoint, with
    the stream's position: tasks passed over make it run ahead of the loop's cursor. There is no file unless
    `tasks.solved` or `tasks.curriculum` asks for it.
    """

    def __init__(
        self, config: Config, tasks: Tasks, rollout: Rollout, keep: Callable[[Group], bool], version: int = 0,
        owed: Sequence[str] = (),
    ):  # fmt: skip
        """`version`: the step that the run goes on from; what was written of later ones is taken back. `owed`: ids of the
        tasks that were in flight then, in order."""
        self.tasks, self.rollout, self.filter = tasks, rollout, keep
        self.metric, self.seed = config.metric, config.seed
        self.solved, self.chance = config.tasks.solved, CURRICULA[config.tasks.curriculum]
        self.on = self.solved > 0 or config.tasks.curriculum != "none"
        self.rates: dict[str, float] = {}
        self.owed = deque(owed)
        self.drawn: deque[Asked] = deque()  # not yet consumed, oldest first
        self.consumed: list[Asked] = []  # in this step
        self.metrics: Metrics = {}  # of the last finished step
        self.ids = tasks.ids() if self.on else None
        self.path = Path(config.out) / "tasks.jsonl"
        self.position = self._read(version) if self.on and version else 0
        self.finished = self._finished()
        if self.on:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not version:
                checkpoint.write_atomic(self.path, "")

    def stream(self, cursor: int) -> Iterator[Task]:
        """Tasks to ask, beginning where the run that goes on had got to: `cursor` tasks were consumed."""
        start, skipped = self.position if self.on and self.position else cursor, 0
        for position, task in zip(count(start), self.tasks.stream(start), strict=False):
            if self.on and not (self._owes(task) if self.owed else self._asks(task)):
                skipped += 1
                continue
            self.drawn.append(Asked(task, position + 1, skipped))
            skipped = 0
            yield task

    async def sample(self, task: Task, n: int) -> Group:
        asked = next(asked for asked in reversed(self.drawn) if asked.task is task)
        asked.group = await self.rollout.sample(task, n)
        return asked.group

    def keep(self, group: Group) -> bool:
        """The filter, of a group that is consumed; those before it that had no samples were consumed without a word."""
        while self.drawn:
            asked = self.drawn.popleft()
            self.consumed.append(asked)
            if asked.group is group:
                return self.filter(group)
        raise RuntimeError(f"the group of task {group.task.id} was not sampled here")

    async def load(self, source: WeightSource, version: int) -> Any:
        """The step that made these weights is over: its last group was kept, so all that it consumed is known."""
        rates: dict[str, float] = {}
        for asked in self.consumed:
            if asked.group is not None and (rate := pass_rate(asked.group, self.metric)) is not None:
                rates[origin(asked.task.id)[0]] = rate
        self.metrics = {"overlong": sum(map(overlong, self.consumed))}
        if self.on:
            self.rates |= rates
            self.metrics["skipped"] = sum(asked.skipped for asked in self.consumed)
            self.position = self.consumed[-1].position if self.consumed else self.position
            self.finished = self._finished()
            checkpoint.append(self.path, json.dumps({"step": version, "position": self.position, "rates": rates}))
        self.consumed = []
        return await self.rollout.load(source, version)

    def _finished(self) -> bool:
        """Is every task solved, so that none would ever be asked again?"""
        return bool(self.solved and self.ids) and all(self.rates.get(i, -1.0) >= self.solved for i in self.ids or ())

    def _owes(self, task: Task) -> bool:
        """Was it in flight at the checkpoint? What lies between such tasks was passed over then."""
        if task.id != self.owed[0]:
            return False
        self.owed.popleft()
        return True

    def _asks(self, task: Task) -> bool:
        name, epoch = origin(task.id)
        rate = self.rates.get(name)
        if rate is None:
            return True
        if self.solved and rate >= self.solved:
            return False
        chance = self.chance(rate)
        return chance >= 1 or random.Random(f"{self.seed}/{name}/{epoch}").random() < chance

    def _read(self, version: int) -> int:
        """Take up the rates of the steps up to `version`; returns the stream's position after it."""
        kept, position, step = [], 0, 0
        try:
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n"):  # cut off by a crash
                    break
                row = json.loads(line)
                if row["step"] > version:
                    break
                kept.append(line)
                self.rates |= row["rates"]
                position, step = row["position"], row["step"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.path} cannot be read, and tasks.solved and tasks.curriculum need it: {error}") from None
        if step != version:
            raise StorageError(f"{self.path} ends at step {step}, but the newest checkpoint is of step {version}")
        checkpoint.write_atomic(self.path, "".join(kept))
        return int(position)


def overlong(asked: Asked) -> bool:
    """Was the prompt too long? Then it got no samples, or was answered in a shorter form (`prompts.fit`)."""
    return asked.group is not None and (not asked.group.samples or asked.group.task.prompt != asked.task.prompt)
