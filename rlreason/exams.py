"""Held-out tasks asked before, during and after training: which weights are best, and which domain got worse."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from rlreason import checkpoint
from rlreason.config import Config
from rlreason.evaluate import Evaluation, Regression, Score, accuracy, evaluation, regressions
from rlreason.loop import Rollout, WeightSource
from rlreason.sampling import Answered, written
from rlreason.types import Group, Task


class Exams:
    """A rollout that is examined every `eval.every` steps, while it answers.

    An exam is asked together with the first task after the weights have arrived, so that it enters the engines in one wave
    with the next step's tasks (whose last bits would else depend on when it came), and is over before the next weights
    are taken in: engines answer both side by side, and rollouts wait for no more than its longest answer.
    Every result is a file, evaluations/<when>.json, and `weights/best` leads to the weights of the best.
    """

    def __init__(self, config: Config, tasks: list[Task], rollout: Rollout, engines: Rollout, say: Callable[..., None]):
        """`rollout` answers in training; where that is not the `engines`, they are given the weights for each exam.
        `say` is told (event, text, details)."""
        self.config, self.tasks, self.rollout, self.engines, self.say = config, tasks, rollout, engines, say
        self.out = Path(config.out)
        self.due = 0  # the version that is to be examined
        self.exam: asyncio.Task[None] | None = None

    async def sample(self, task: Task, n: int) -> Group:
        if self.due:
            version, self.due = self.due, 0
            # Asked before the task itself is: `Rollouts` then deals them out in the same turn of the event loop.
            asked = [asyncio.ensure_future(self.engines.sample(t, self.config.eval.samples)) for t in self.tasks]
            self.exam = asyncio.create_task(self._examine(f"step-{version:06}", version, asked))
        return await self.rollout.sample(task, n)

    async def load(self, source: WeightSource, version: int) -> Any:
        await self.settle()
        seconds = await self.rollout.load(source, version)
        every = self.config.eval.every
        if every and version and version % every == 0 and version < self.config.loop.steps:
            if self.rollout is not self.engines:
                await self.engines.load(source, version)
            self.due = version
        return seconds

    async def settle(self) -> None:
        """Wait for the exam that is being written, if there is one."""
        if self.exam:
            exam, self.exam = self.exam, None
            await exam

    async def drop(self) -> None:
        """Give up the exam that is due or being written: whoever takes up the run begins it anew."""
        self.due = 0
        if self.exam:
            self.exam.cancel()
            await asyncio.gather(self.exam, return_exceptions=True)
            self.exam = None

    async def score(self, when: str, version: int) -> None:
        """Accuracy before or after training: asked once, and kept across restarts."""
        path = self._path(when)
        if self.tasks and not (path.exists() and checkpoint.read_json(path)["step"] == version):  # of a run that goes on
            await self._examine(when, version, [self.engines.sample(task, self.config.eval.samples) for task in self.tasks])

    async def _examine(self, when: str, version: int, asked: Sequence[Awaitable[Group]]) -> None:
        config = self.config
        groups = await asyncio.gather(*asked)
        score = accuracy(groups, config.metric)
        rows = [written(group, config.metric) for group in groups]
        result = evaluation(rows, config.eval.k, config.seed)
        (self.out / "rollouts").mkdir(parents=True, exist_ok=True)
        write_samples(self.out / "rollouts" / f"{when.replace('step', 'exam')}.jsonl", rows)  # step-… are training's own
        self._path(when).parent.mkdir(parents=True, exist_ok=True)
        kept = {"step": version, "metric": config.metric, "accuracy": score.dict()} | result.dict()
        checkpoint.write_atomic(self._path(when), json.dumps(kept))
        self.say("evaluation", f"{config.metric} on held-out tasks {told(when, version)}: {score}", when=when, **score.dict())
        self._choose()

    def _choose(self) -> None:
        """Let weights/best lead to the weights of the best result; of equal ones to the last."""
        scores = {e["step"]: e["accuracy"]["mean"] for e in self.results() if (self.out / "weights" / f"v{e['step']}").is_dir()}
        if self.config.eval.every and scores:
            best = max(scores, key=lambda step: (scores[step], step))
            checkpoint.point(self.out / "weights" / "best", f"v{best}")

    def results(self) -> list[dict[str, Any]]:
        """What every exam so far gave, by step."""
        files = (self.out / "evaluations").glob("*.json")
        return sorted((checkpoint.read_json(file) for file in files), key=lambda e: e["step"])

    def accuracy(self, when: str) -> dict[str, float] | None:
        return checkpoint.read_json(self._path(when))["accuracy"] if self._path(when).exists() else None

    def regressions(self) -> list[Regression]:
        """Domains in which the model is worse after training than before, by more than chance explains."""
        ends = [self._path(when) for when in ("before", "after")]
        if not all(path.exists() for path in ends):
            return []
        before, after = (Evaluation.from_dict(checkpoint.read_json(path)) for path in ends)
        return regressions(before, after)

    def _path(self, when: str) -> Path:
        return self.out / "evaluations" / f"{when}.json"


def told(when: str, version: int) -> str:
    return f"after step {version}" if when.startswith("step-") else f"{when} training"


def write_samples(path: Path, rows: list[Answered]) -> None:
    """One line per answer, for people to read."""
    with path.open("w", encoding="utf-8", errors="replace") as f:
        for row in rows:
            for sample in row["samples"]:
                f.write(json.dumps({"task": row["task"], "prompt": row["prompt"], "answer": row["answer"]} | sample) + "\n")


async def score_model(rollout: Rollout, tasks: list[Task], config: Config) -> tuple[Score, list[Answered]]:
    groups = await asyncio.gather(*(rollout.sample(task, config.eval.samples) for task in tasks))
    return accuracy(groups, config.metric), [written(group, config.metric) for group in groups]
