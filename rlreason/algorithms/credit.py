"""Credit: from the rewards of a batch to one advantage per sample. numpy only; every rank works out the same.

A group with nothing to compare (one sample, or all rewards equal) has advantage 0 under every method that compares
within groups. Standard deviations divide by n - 1, as the field's code does; that of one sample is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Scores(NamedTuple):
    """The N judged samples of a batch."""

    reward: Array  # [N]
    group: NDArray[np.int64]  # [N], samples of the same task have the same number
    length: NDArray[np.int64]  # [N], answer tokens
    parts: dict[str, Array]  # reward name -> [N], NaN where that reward does not apply to the task
    weights: dict[str, Array]  # reward name -> [N], its weight in the sum

    @classmethod
    def of(cls, *groups: list[float]) -> Scores:
        """Groups of bare rewards, each answer one token long: for trying a method by hand."""
        reward = np.array([r for group in groups for r in group], np.float64)
        number = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return cls(reward, number, np.ones(len(reward), np.int64), {"reward": reward}, {"reward": np.ones(len(reward))})


def none(s: Scores) -> Array:
    """0: what a sample earns does not matter. On-policy distillation learns from `kl_credit` alone."""
    return np.zeros_like(s.reward)


def raw(s: Scores) -> Array:
    """The reward itself, without a baseline (REINFORCE)."""
    return s.reward.copy()


def grpo(s: Scores, eps: float = 1e-6) -> Array:
    """(R - mean) / (std + eps) within the group (DeepSeekMath, 2402.03300). TRL has eps = 1e-4."""
    return _within(s, s.reward, lambda r: (r - r.mean()) / (_std(r) + eps))


def dr_grpo(s: Scores) -> Array:
    """R - mean of the group; dividing by std over-weights easy and hard tasks (Dr.GRPO, 2503.20783)."""
    return _within(s, s.reward, lambda r: r - r.mean())


def rloo(s: Scores) -> Array:
    """R minus the mean of the group's *other* samples (2402.14740): n / (n - 1) times `dr_grpo`."""
    return _within(s, s.reward, lambda r: (r - r.mean()) * (len(r) / (len(r) - 1) if len(r) > 1 else 0.0))


def maxrl(s: Scores, eps: float = 1e-6) -> Array:
    """(R - mean) / (mean + eps) of the group: a task of pass rate p counts like 1 / p (MaxRL, 2602.02710). It wants
    rewards that are 0 at worst; a mean of 0 or below gives 0."""
    return _within(s, s.reward, lambda r: (r - r.mean()) / (r.mean() + eps) if r.mean() > 0 else np.zeros_like(r))


def passk(s: Scores, k: int = 4, correct: float = 0.5) -> Array:
    """The advantage of pass@k, in closed form over all subsets of k of the group's n samples (2508.10751).

    With n₋ wrong samples (reward <= `correct`), P = 1 - C(n₋, k) / C(n, k) is the group's pass@k and σ² = P (1 - P):
    a right sample gets (1 - P) / σ, a wrong one (1 - C(n₋ - 1, k - 1) / C(n - 1, k - 1) - P) / σ. σ = 0: 0.
    A group of fewer than k samples has k = n.
    """

    def group(r: Array) -> Array:
        n, size = len(r), min(k, len(r))
        right = r > correct
        wrong = int(n - right.sum())
        p = 1 - comb(wrong, size) / comb(n, size)
        sigma = (p * (1 - p)) ** 0.5
        if sigma == 0:
            return np.zeros_like(r)
        of_wrong = 1 - comb(wrong - 1, size - 1) / comb(n - 1, size - 1) - p
        return np.where(right, 1 - p, of_wrong) / sigma

    return _within(s, s.reward, group)


def passk_best(s: Scores, eps: float = 1e-6, scale: bool = True) -> Array:
    """Pass@k through the best sample alone: (best - second best) / (std + eps), all others 0 (2503.19595)."""

    def group(r: Array) -> Array:
        advantage = np.zeros_like(r)
        if len(r) > 1:
            second, first = np.sort(r)[-2:]
            advantage[r.argmax()] = (first - second) / (_std(r) + eps if scale else 1.0)
        return advantage

    return _within(s, s.reward, group)


def batch(s: Scores, eps: float = 1e-6, std: Literal["rewards", "advantages"] = "rewards") -> Array:
    """R - mean of the group, divided by the std over the whole batch + eps.

    `std` is that of the `rewards` (Lite-PPO, 2508.08221), or of the `advantages` so far (ScaleRL, 2510.13786).
    """
    centred = dr_grpo(s)
    return centred / (_std(s.reward if std == "rewards" else centred) + eps)


def reinforce_pp(s: Scores) -> Array:
    """R whitened over the batch, each sample counting as often as it has tokens (REINFORCE++, 2501.03262)."""
    return _whiten(s.reward, s.length)


def reinforce_pp_baseline(s: Scores) -> Array:
    """R - mean of the group, then whitened over the tokens of the batch (REINFORCE++-baseline, 2501.03262)."""
    return _whiten(dr_grpo(s), s.length)


def gdpo(s: Scores, eps: float = 1e-6, over: Literal["samples", "tokens"] = "samples") -> Array:
    """Each reward by itself as in `grpo`, their weighted sum whitened over the batch (GDPO, 2601.05242).

    So a reward of small spread is heard beside one of large spread. The last step counts `samples` (the paper, TRL),
    or the `tokens` that each has (verl).
    """
    total = np.zeros_like(s.reward)
    for name, part in s.parts.items():
        total += s.weights[name] * np.nan_to_num(_within(s, part, lambda r: (r - r.mean()) / (_std(r) + eps)))
    if over == "tokens" or not len(total):
        return _whiten(total, s.length)
    return (total - total.mean()) / (_std(total) + eps)


def _within(s: Scores, values: Array, formula: Callable[[Array], Array]) -> Array:
    """`formula` on the values of each group by itself; exactly 0, whatever the rounding, where they are all equal."""
    result = np.zeros(len(values))
    for number in np.unique(s.group):
        rows = s.group == number
        if np.ptp(values[rows]):
            result[rows] = formula(values[rows])
    return result


def _std(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _whiten(values: Array, length: NDArray[np.int64]) -> Array:
    """Mean 0 and variance 1 over tokens; the variance's denominator is their number - 1. All equal: 0."""
    count = length.sum()
    if count < 2:
        return np.zeros_like(values)
    mean = (values * length).sum() / count
    variance = ((values - mean) ** 2 * length).sum() / (count - 1)
    return (values - mean) / np.sqrt(variance + 1e-8)


ADVANTAGES: dict[str, Callable[..., Array]] = {
    f.__name__: f
    for f in (grpo, dr_grpo, rloo, reinforce_pp, reinforce_pp_baseline, maxrl, passk, passk_best, batch, gdpo, raw, none)
}
