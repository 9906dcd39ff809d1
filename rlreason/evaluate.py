"""How good is a model? Sampled accuracy on held-out tasks, with intervals; and is it worse than the one before?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Self

import numpy as np

from rlreason.errors import RolloutError
from rlreason.passk import maj_at_k, pass_at_k, voted
from rlreason.types import Group, Task

CELLS = 1 << 20  # of resampled values held at once: 12 MB
ALL = "all"  # how the whole is called, beside its domains

Row = dict[str, Any]
Scores = dict[str, "Score"]


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


def bootstrap(values: Sequence[float], seed: int, draws: int = 1000) -> Score:
    """The mean of `values`, one per task, and its percentile interval over `draws` resamples of the tasks (Efron, 1979).

    Whatever the values' range. Where they are all the same it is a point: `wilson` says what that may still hide.
    """
    column = np.asarray(values, dtype=np.float64)
    n = len(column)
    if not np.isfinite(column).all() or not n:
        raise ValueError(f"no interval of {n} values, of which {np.isfinite(column).sum()} are finite")
    random, means = np.random.default_rng(seed), np.empty(draws)
    step = max(1, CELLS // n)
    for start in range(0, draws, step):
        part = means[start : start + step]
        part[:] = column[random.integers(n, size=(len(part), n), dtype=np.int32)].mean(axis=1)
    mean = fmean(values)
    low, high = np.quantile(means, (0.025, 0.975))
    return Score(mean, n, min(float(low), mean), max(float(high), mean))


def measure(task: Task, metric: str) -> str:
    """The reward by which a task is scored: `metric`, or the first of a task's own rewards if that is none of them."""
    return metric if metric in (task.reward or {metric}) else next(iter(task.reward or ()))


def pass_rate(group: Group, metric: str) -> float | None:
    """Mean of the reward `metric` over a task's answers; of a task with rewards of its own, of the first of those.

    None where no answer could be judged by it.
    """
    name = measure(group.task, metric)
    values = [value for s in group.samples if (value := s.parts.get(name)) is not None]
    return fmean(values) if values else None


def accuracy(groups: Sequence[Group], metric: str) -> Score:
    """The mean pass rate over tasks; one of which no answer can be judged does not count.

    Raises `RolloutError` if none counts.
    """
    means = [rate for group in groups if (rate := pass_rate(group, metric)) is not None]
    if not means:
        failures = (f"; {name} {cause}" for g in groups for s in g.samples for name, cause in s.failures.items())
        raise RolloutError(f"none of the {len(groups)} held-out tasks could be judged by {metric}{next(failures, '')}")
    return interval(means)


@dataclass(frozen=True)
class Evaluation:
    """What came of a set of tasks, each answered several times."""

    scores: Scores  # pass@k, maj@k, the mean of every other reward; see `evaluation`
    domains: dict[str, Scores]  # the same, of each domain; {} where no task names one
    tasks: dict[str, Row]  # task id -> {domain, n (answers judged), c (of those right), mean (of the metric)}
    unjudged: int = 0  # tasks none of whose answers could be judged: they are not in the above

    def dict(self) -> Row:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """The evaluation whose `dict()` went through JSON."""
        domains = {domain: _read(scores) for domain, scores in saved["domains"].items()}
        return cls(_read(saved["scores"]), domains, saved["tasks"], saved["unjudged"])


def _read(scores: Mapping[str, Any]) -> Scores:
    return {name: Score(**score) for name, score in scores.items()}


def row(group: Group, metric: str) -> Row:
    """What is kept of a task's answers, as a line of JSON: everything that `evaluation` reads."""
    task, name = group.task, measure(group.task, metric)
    samples = [
        {"parts": s.parts, "vote": voted(task, s.text, name, s.truncated), "length": s.length, "truncated": s.truncated}
        for s in group.samples
    ]
    return {"task": task.id, "domain": task.domain, "metric": name, "samples": samples}


def evaluation(rows: Iterable[Row], ks: Iterable[int] = (1,), seed: int = 0) -> Evaluation:
    """The scores of tasks, given a `row` of each in any order. An answer is right if it earns 1 or more by the metric.

    - pass@1: the share of right answers, a mean over answers and then over tasks; and pass@k for every other of `ks`.
    - maj@k, for k > 1: of the answer that most of k give.
    - mean: of the metric, where some task earns parts of it, so that this is not pass@1.
    - every other reward by its name, its mean over answers and then over tasks.

    Intervals are bootstrapped over tasks. An answer that could not be judged is none, and a task without any is counted
    as `unjudged`; one of fewer than k is left out of pass@k and maj@k, as their `n` tells. No task at all, no such score.
    Raises `ValueError` if two tasks have the same id, or a k is below 1.
    """
    ks = sorted({1, *ks})
    if ks[0] < 1:
        raise ValueError(f"pass@{ks[0]}: k is 1 or more")
    tasks: dict[str, Row] = {}
    worth: dict[str, dict[str, float]] = {}  # task id -> score name -> what that task contributes
    asked: set[str] = set()
    for line in rows:
        if line["task"] in asked:
            raise ValueError(f"two tasks have the id {line['task']!r}")
        asked.add(line["task"])
        judged = [s for s in line["samples"] if s["parts"].get(line["metric"]) is not None]
        if judged:
            tasks[line["task"]], worth[line["task"]] = _scored(line, judged, ks)
    tasks = {name: tasks[name] for name in sorted(tasks)}  # so that the order of the rows changes no interval
    ours = [*(f"pass@{k}" for k in ks), *(f"maj@{k}" for k in ks)]
    if any(task["mean"] != task["c"] / task["n"] for task in tasks.values()):
        ours.append("mean")
    names = [*ours, *sorted({name for scores in worth.values() for name in scores} - {*ours, "mean"})]

    def scores(domain: str) -> Scores:
        of = [worth[name] for name in _within(tasks, domain)]
        columns = {name: [scores[name] for scores in of if name in scores] for name in names}
        return {name: bootstrap(column, seed) for name, column in columns.items() if column}

    domains = sorted({task["domain"] for task in tasks.values()} - {""})
    return Evaluation(scores(""), {domain: scores(domain) for domain in domains}, tasks, len(asked) - len(tasks))


def _scored(line: Row, judged: list[Row], ks: list[int]) -> tuple[Row, dict[str, float]]:
    """A task's entry in `Evaluation.tasks`, and what it contributes to each score."""
    earned = [s["parts"][line["metric"]] for s in judged]
    right, votes = [value >= 1 for value in earned], [s["vote"] for s in judged]
    n, c, mean = len(judged), sum(right), fmean(earned)
    others: defaultdict[str, list[float]] = defaultdict(list)
    for s in line["samples"]:
        for name, value in s["parts"].items():
            if name != line["metric"] and value is not None:
                others[name].append(value)
    worth = {f"pass@{k}": pass_at_k(n, c, k) for k in ks if k <= n}
    worth |= {f"maj@{k}": maj_at_k(votes, right, k) for k in ks if 1 < k <= n}
    worth |= {"mean": mean} | {name: fmean(values) for name, values in others.items()}
    return {"domain": line["domain"], "n": n, "c": c, "mean": mean}, worth


def _within(tasks: Mapping[str, Row], domain: str) -> list[str]:
    """The ids of the tasks of a domain, or of all for \"\"."""
    return [name for name, task in tasks.items() if domain in ("", task["domain"])]


@dataclass(frozen=True)
class Regression:
    """A loss beyond chance on the same tasks: their mean metric before and after."""

    domain: str  # "": of all tasks
    before: float
    after: float
    difference: float  # after - before, below 0
    error: float  # the standard error of the difference
    n: int  # tasks

    def __str__(self) -> str:
        size = f"{-self.difference / self.error:.1f} standard errors" if self.error else "the same on every task"
        lost = f"{self.before:.3f} -> {self.after:.3f}, a loss of {-self.difference:.3f}"
        return f"{self.domain or ALL}: {lost} ({size}, n = {self.n})"


def regressions(before: Evaluation, after: Evaluation) -> list[Regression]:
    """Where a model is worse than the one before it: the whole ("") and each domain, of the tasks that both answered.

    The mean over tasks of d = after - before lies more than two standard errors, stdev(d) / sqrt(n), below 0: paired, so
    that hard and easy tasks add no noise. One task shows nothing; of more that lose alike, any loss counts.
    """
    tasks = {name: task for name, task in after.tasks.items() if name in before.tasks}
    found = []
    for domain in ["", *sorted({task["domain"] for task in tasks.values()} - {""})]:
        names = _within(tasks, domain)
        if len(names) < 2:
            continue
        old, new = ([tasks[name]["mean"] for name in names] for tasks in (before.tasks, after.tasks))
        lost = [b - a for a, b in zip(old, new, strict=True)]
        difference, error = round(fmean(lost), 12), round(stdev(lost) / math.sqrt(len(lost)), 12)  # 0.8 - 0.7 is not 0.3 - 0.2
        if difference < -2 * error:
            found.append(Regression(domain, fmean(old), fmean(new), difference, error, len(lost)))
    return found


def table(result: Evaluation) -> list[tuple[str, ...]]:
    """For people: a line of headings and one per score; a column of the whole, and one per domain."""
    columns = {ALL: result.scores} | result.domains
    return [("", *columns), *((name, *(_cell(scores.get(name)) for scores in columns.values())) for name in result.scores)]


def _cell(score: Score | None) -> str:
    return f"{score.mean:.3f} [{score.low:.2f}, {score.high:.2f}]" if score else "–"
