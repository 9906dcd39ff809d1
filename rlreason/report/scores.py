"""Scores with their intervals, and what held-out tasks showed at a step or in an examination. Knows nothing of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlreason.report.text import number, percent, real

Scores = dict[str, "Accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """A mean over tasks: an accuracy, or any other score."""

    mean: float
    span: tuple[float, float] | None  # its 95 % interval
    n: float | None  # tasks judged

    def __str__(self) -> str:
        span = f" ({self.interval})" if self.span else ""
        return percent(self.mean) + span + ("" if self.n is None else f", n = {number(self.n)}")

    @property
    def interval(self) -> str:
        return f"{percent(self.span[0])} to {percent(self.span[1])}" if self.span else ""


@dataclass(frozen=True)
class Exam:
    """What a set of tasks showed: one file of evaluations/, or scores.json."""

    step: int  # after which it was held; 0 where there are none
    when: str  # before, after, step-000020; or scores
    metric: str  # the reward that is called accuracy
    accuracy: Accuracy | None
    scores: Scores  # of all tasks
    domains: dict[str, Scores]  # of each domain, {} where tasks have none
    unjudged: float  # tasks that could not be judged, and are in none of these


def score(value: Any) -> Accuracy | None:
    """{mean, n, low, high} as a run writes it, or a mean alone. None where there is no mean."""
    if not isinstance(value, dict):
        value = {"mean": value}
    if (mean := real(value.get("mean"))) is None:
        return None
    low, high = real(value.get("low")), real(value.get("high"))
    return Accuracy(mean, None if low is None or high is None else (low, high), real(value.get("n")))


def exam(said: dict[str, Any], when: str) -> Exam | None:
    """What a file says of an exam; None if it has neither an accuracy nor scores, or a step that is none."""
    domains, step = said.get("domains"), real(said.get("step", 0))
    scores, accuracy = _scores(said.get("scores")), score(said.get("accuracy"))
    if not (scores or accuracy) or step is None or not 0 <= step < 2**53:
        return None
    return Exam(
        step=int(step),
        when=when,
        metric=str(said.get("metric") or "accuracy"),
        accuracy=accuracy or main(scores),
        scores=scores,
        domains={str(name): _scores(of) for name, of in domains.items()} if isinstance(domains, dict) else {},
        unjudged=real(said.get("unjudged")) or 0,
    )


def main(scores: Scores) -> Accuracy | None:
    """The score that training goes by: the mean of the metric, which is pass@1 where no task earns parts of it."""
    return scores.get("mean") or scores.get("pass@1")


def largest(exams: Sequence[Exam], most: int) -> tuple[list[str], int]:
    """(the domains with most tasks, at most `most`, by name; how many more there are)."""
    tasks: dict[str, float] = {}
    for one in exams:
        for name, scores in one.domains.items():
            first = main(scores)
            tasks[name] = max(tasks.get(name, 0.0), first.n or 0.0 if first else 0.0)
    chosen = sorted(tasks, key=lambda name: (-tasks[name], name))[:most]
    return sorted(chosen), len(tasks) - len(chosen)


def _scores(value: Any) -> Scores:
    if not isinstance(value, dict):
        return {}
    return {str(name): made for name, said in value.items() if (made := score(said))}
