"""How good is a model? Sampled accuracy on held-out tasks, with an interval."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from rlreason.errors import RolloutError
from rlreason.loop import Rollout
from rlreason.types import Group, Task


@dataclass(frozen=True)
class Score:
    """A mean over `n` tasks, and its 95 % interval [low, high]."""

    mean: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"

    def dict(self) -> dict[str, float]:
        return asdict(self)


def wilson(mean: float, n: int, z: float = 1.96) -> Score:
    """Wilson's score interval for a proportion (JASA 1927): right near 0 and 1 too, where mean ± z·se is not.

    With several samples per task `mean` is a mean of means and `n` counts tasks: samples of one task are not
    independent, and the interval errs on the wide side.
    """
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Score(mean, n, max(0.0, middle - reach), min(1.0, middle + reach))


def interval(means: Sequence[float]) -> Score:
    """Wilson's for shares of tasks; for a metric beyond [0, 1] the normal one, mean ± 1.96 standard errors."""
    mean, n = fmean(means), len(means)
    if all(0 <= value <= 1 for value in means):
        return wilson(mean, n)
    reach = 1.96 * (stdev(means) if n > 1 else math.inf) / math.sqrt(n)
    return Score(mean, n, mean - reach, mean + reach)


def pass_rate(group: Group, metric: str) -> float | None:
    """Mean of the reward `metric` over a task's answers; of a task with rewards of its own, of the first of those.

    None where no answer could be judged by it.
    """
    name = metric if metric in (group.task.reward or {metric}) else next(iter(group.task.reward or ()))
    values = [value for s in group.samples if (value := s.parts.get(name)) is not None]
    return fmean(values) if values else None


async def evaluate(rollout: Rollout, tasks: Sequence[Task], samples: int, metric: str) -> tuple[Score, list[Group]]:
    """The mean pass rate over tasks; one of which no answer can be judged does not count."""
    groups = list(await asyncio.gather(*(rollout.sample(task, samples) for task in tasks)))
    means = [rate for group in groups if (rate := pass_rate(group, metric)) is not None]
    if not means:
        failures = (f"; {name} {cause}" for g in groups for s in g.samples for name, cause in s.failures.items())
        raise RolloutError(f"none of the {len(tasks)} held-out tasks could be judged by {metric}{next(failures, '')}")
    return interval(means), groups
