"""From the groups of a step to the columns of its batch: credit, and what each token is worth. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlreason.algorithms.covariance import COVARIANCE, covariance
from rlreason.algorithms.credit import ADVANTAGES, Scores
from rlreason.algorithms.losses import LOSSES
from rlreason.named import found, options
from rlreason.rewards.length import overlong_penalty
from rlreason.types import Group, Sample, token_weights

if TYPE_CHECKING:
    from rlreason.config import AlgorithmConfig

Column = list[Any]  # one number per sample, or an array as long as its tokens


def cut(groups: Sequence[Group], updates: int, overlong: str = "keep") -> list[list[int]]:
    """Which samples each optimizer step of a batch learns from: every `updates`-th group; truncated ones not under `mask`.

    Rows count the judged samples of `groups`, in order.
    """
    parts: list[list[int]] = [[] for _ in range(updates)]
    judged = [(number, s) for number, group in enumerate(groups) for s in group.judged()]
    for row, (number, s) in enumerate(judged):
        if not (overlong == "mask" and s.truncated):
            parts[number % updates].append(row)
    return parts


def columns(
    groups: Sequence[Group],
    parts: Sequence[list[int]],
    algorithm: AlgorithmConfig,
    weights: Mapping[str, float],
    limit: int,
    reference: Sequence[NDArray[np.float32]] | None = None,
    seed: int = 0,
) -> dict[str, Column]:
    """`weight` and `advantage`, and where the method has them `reference` and `penalty`, for the judged samples of `groups`.

    `parts` is what `cut` gave: the denominators of `weight` span one part. Credit spans them all.
    `weights` are those of the rewards, where a task has none of its own; `limit` is the longest answer in tokens.
    `reference` holds log-probabilities of each sample's tokens, [P + A].
    """
    samples = [s for group in groups for s in group.judged()]
    weight: Column = [0.0] * len(samples)
    numbers = [number for number, group in enumerate(groups) for _ in group.judged()]
    for rows in parts:
        lengths, tasks = [samples[row].length for row in rows], [numbers[row] for row in rows]
        for row, each in zip(rows, token_weights(lengths, tasks, algorithm.per, limit), strict=True):
            weight[row] = each
    if algorithm.answers == "recorded":
        return {"weight": weight, "advantage": [1.0] * len(samples)}  # nll does not look at it
    drift = [_drift(s, r) for s, r in zip(samples, reference, strict=True)] if reference is not None else None
    scores = score(groups, algorithm, weights, limit, drift)
    advantage: Column = list(found(ADVANTAGES, algorithm.advantage)(scores, **algorithm.advantage_options))
    result: dict[str, Column] = {}
    if algorithm.covariance != "none" and samples:
        chosen = _chosen(samples, advantage, algorithm, seed)
        if algorithm.covariance == "clip_cov":
            weight = [each * (1 - mark) for each, mark in zip(weight, chosen, strict=True)]
        else:
            known = options(COVARIANCE[algorithm.covariance]) | algorithm.covariance_options
            result["penalty"] = [known["coefficient"] * mark for mark in chosen]
    if algorithm.kl_credit and drift is not None:
        advantage = [a - algorithm.kl_credit * d for a, d in zip(advantage, drift, strict=True)]
    if reference is not None:
        result["reference"] = list(reference)
    return result | {"weight": weight, "advantage": advantage}


def moving(columns: Mapping[str, Column], algorithm: AlgorithmConfig) -> list[bool]:
    """Which samples have a gradient. Where a group's rewards agree its advantages are 0, and so is every loss of `LOSSES` but
    `nll`: those samples need not be put through the model, unless another term of the objective wants them."""
    if algorithm.answers == "recorded" or algorithm.loss not in LOSSES or algorithm.kl_loss or algorithm.entropy:
        return [True] * len(columns["weight"])
    pulls = [columns["advantage"], *([columns["penalty"]] if "penalty" in columns else [])]
    return [bool(np.any(weight)) and any(map(np.any, own)) for weight, *own in zip(columns["weight"], *pulls, strict=True)]


def score(
    groups: Sequence[Group],
    algorithm: AlgorithmConfig,
    weights: Mapping[str, float],
    limit: int,
    drift: Sequence[NDArray[np.float32]] | None = None,
) -> Scores:
    """The rewards of a step as credit sees them: soft overlong penalty and KL penalty taken off.

    `drift` is log(policy / reference) of each sample's tokens, 0 where they are not trained on.
    """
    judged = [(number, group.task.reward or weights, s) for number, group in enumerate(groups) for s in group.judged()]
    length = np.array([s.length for _, _, s in judged], np.int64)
    reward = np.array([s.reward for _, _, s in judged], np.float64)
    names = list(dict.fromkeys(name for _, own, _ in judged for name in own))
    parts = {name: np.array([_number(s.parts.get(name)) for _, _, s in judged]) for name in names}
    share = {name: np.array([own.get(name, 0.0) for _, own, _ in judged]) for name in names}
    if algorithm.overlong == "soft":
        parts["overlong"] = np.array([overlong_penalty(int(n), limit, algorithm.overlong_buffer) for n in length], np.float64)
        share["overlong"] = np.ones(len(judged))
        reward = reward + parts["overlong"]
    if algorithm.kl_reward and drift is not None:
        parts["kl"] = np.array([-float(d.sum()) for d in drift])
        share["kl"] = np.full(len(judged), algorithm.kl_reward)
        reward = reward + algorithm.kl_reward * parts["kl"]
    return Scores(reward, np.array([number for number, _, _ in judged], np.int64), length, parts, share)


def _chosen(samples: list[Sample], advantage: Column, algorithm: AlgorithmConfig, seed: int) -> Column:
    """1 for the tokens of high covariance that clip_cov or kl_cov takes, else 0."""
    function = COVARIANCE[algorithm.covariance]
    flat = covariance(
        np.concatenate([np.full(s.length, a, np.float64) for s, a in zip(samples, advantage, strict=True)]),
        np.concatenate([s.logprobs[s.mask] for s in samples]).astype(np.float64),
    )
    chosen = function(flat, np.random.default_rng(seed), **algorithm.covariance_options)
    marks = []
    for s, part in zip(samples, np.split(chosen, np.cumsum([s.length for s in samples])[:-1]), strict=True):
        mark = np.zeros(len(s.tokens), np.float32)
        mark[s.mask] = part
        marks.append(mark)
    return marks


def _drift(sample: Sample, reference: NDArray[np.float32]) -> NDArray[np.float32]:
    drift: NDArray[np.float32] = (sample.logprobs - reference) * sample.mask
    return drift


def _number(part: float | None) -> float:
    return np.nan if part is None else part
