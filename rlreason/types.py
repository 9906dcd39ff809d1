"""The values that move through rlreason: Task -> Sample -> Group -> Batch. numpy only, so that every room may read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlreason.packing import cut_padded

Metrics = dict[str, float]
Prompt = str | list[dict[str, str]]  # plain text, or chat messages {"role": …, "content": …}


@dataclass(frozen=True, slots=True)
class Task:
    """A question, with what is needed to judge an answer."""

    id: str
    prompt: Prompt
    answer: str | None = None  # what rewards compare with
    response: str | None = None  # a whole demonstration; where there is none, the answer is one
    reward: dict[str, float] | None = None  # reward name -> weight; None: what the recipe says
    info: dict[str, Any] | None = None  # what a reward needs beside the answer: tests of code, choices, …
    domain: str = ""  # what it is a task of: mathematics, code, …; scores are told for each

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes: what dataclasses do by themselves for frozen ones takes twice as long."""
        return Task, tuple(getattr(self, name) for name in self.__slots__)


@dataclass(slots=True)
class Sample:
    """One answer: every token that the model saw or wrote, and who wrote it.

    With a prompt of P tokens and an answer of A (an end-of-sequence token included, where the model wrote one):

        tokens   = [P0 … A0 …]   int32   [P + A]
        mask     = [0 …  1 …]    bool    [P + A]  True where the policy wrote the token
        logprobs = [0 …  l0 …]   float32 [P + A]  of the policy that wrote it, at the sampling temperature; 0 elsewhere
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    text: str  # the answer, without the end-of-sequence token or the stop string that ended it
    version: int  # of the weights when sampling began
    truncated: bool = False  # ended by the length limit
    reward: float | None = None  # None: could not be judged, so it takes no part in training
    parts: dict[str, float | None] = field(default_factory=dict)  # the reward, itemised
    failures: dict[str, str] = field(default_factory=dict)  # reward name -> how it failed, where it raised, hung, …

    @property
    def length(self) -> int:
        """Tokens that the policy wrote."""
        return int(self.mask.sum())


@dataclass(slots=True)
class Group:
    """The answers to one task; advantages compare them with each other."""

    task: Task
    samples: list[Sample]

    def judged(self) -> list[Sample]:
        return [s for s in self.samples if s.reward is not None]

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes the arrays of all samples go as one of each kind: what a message costs goes by their number."""
        arrays = [[getattr(s, name) for s in self.samples] for name in ("tokens", "mask", "logprobs")]
        rest = [(s.text, s.version, s.truncated, s.reward, s.parts, s.failures) for s in self.samples]
        joined = [np.concatenate(of_all) if of_all else None for of_all in arrays]
        return _group, (self.task, [len(s.tokens) for s in self.samples], joined, rest)


def _group(task: Task, lengths: list[int], joined: list[NDArray[Any]], rest: list[tuple[Any, ...]]) -> Group:
    """What `Group.__reduce__` took apart. The samples' arrays are views of the joined ones."""
    samples, start = [], 0
    for length, more in zip(lengths, rest, strict=True):
        tokens, mask, logprobs = (array[start : start + length] for array in joined)
        samples.append(Sample(tokens, mask, logprobs, *more))
        start += length
    return Group(task, samples)


class Batch(NamedTuple):
    """What one forward pass reads. Every array is [N, T]; row n is one sample, padded on the right.

    The arrays are numpy's where a batch is made, and tensors of the same names where it is trained on.
    """

    tokens: Any  # int64
    mask: Any  # float32, 1 where the token is trained on
    weight: Any  # float32, mask / denominator: the loss is (weight * per_token_loss).sum()
    advantage: Any  # float32, 0 where mask is 0
    logprobs: Any  # float32, of the policy that sampled
    old: Any  # float32, of the learner's policy before this step: what ratios compare with
    reference: Any  # float32, of the reference policy; 0 where the method has none
    penalty: Any  # float32, what |log r| of this token costs; 0 for nearly all

    @classmethod
    def collate(cls, samples: list[Sample], **columns: Sequence[Any]) -> Batch:
        """Pad `samples` to the longest of them.

        A column holds one value per sample: a number for all its trained tokens, or an array as long as `tokens`.
        `old` is `logprobs` where it is not given, and the other columns are 0.
        """
        shape = len(samples), max((len(s.tokens) for s in samples), default=2)
        batch = cls(np.zeros(shape, np.int64), *(np.zeros(shape, np.float32) for _ in cls._fields[1:]))
        for row, s in enumerate(samples):
            end = len(s.tokens)
            batch.tokens[row, :end] = s.tokens
            batch.mask[row, :end] = s.mask
            batch.logprobs[row, :end] = batch.old[row, :end] = s.logprobs
            for name, values in columns.items():
                getattr(batch, name)[row, :end] = s.mask * values[row]
        return batch


def token_weights(lengths: Sequence[int], groups: Sequence[int], per: str, max_tokens: int) -> list[float]:
    """The weight of each trained token, one number per sample: of `lengths[i]` tokens, and an answer to task `groups[i]`.

    The denominator spans the whole batch, so the loss is a plain sum: however the samples are then cut into
    micro-batches and ranks, the gradient is the same.

    `per` is what the loss is a mean of: `token` (DAPO), `sequence` (GRPO as published), `prompt` (every task counts
    the same), `constant` (Dr.GRPO: divided by `max_tokens`, so that length is neither rewarded nor punished).
    """
    total, samples = sum(lengths), len(lengths)
    of_group: Counter[int] = Counter()
    for length, group in zip(lengths, groups, strict=True):
        of_group[group] += length
    weights: list[float] = []
    for length, group in zip(lengths, groups, strict=True):
        denominator = {
            "token": total,
            "sequence": samples * length,
            "prompt": len(of_group) * of_group[group],
            "constant": samples * max_tokens,
        }[per]
        weights.append(1 / denominator if denominator else 0.0)
    return weights


def micro_batches(
    lengths: list[int], ranks: int, budget: int, cut: Callable[[list[int], int], list[int]] = cut_padded
) -> list[list[list[int]]]:
    """Deal samples to ranks and cut each rank's share into micro-batches: [rank][micro-batch] -> sample indices.

    A micro-batch holds at most `budget` tokens, padding included (a longer sample goes alone); `cut` says how many
    samples each takes, longest first. Samples of like length stay together; ranks take turns from longest to shortest,
    so that they end together. Every rank gets the same number of micro-batches, an empty one if need be: under ZeRO-3
    each forward pass is a collective.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable: the same on every rank
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for turn, i in enumerate(order):
        lap, seat = divmod(turn, ranks)
        shares[seat if lap % 2 == 0 else ranks - 1 - seat].append(i)
    plan: list[list[list[int]]] = []
    for share in shares:
        left = iter(share)
        cuts = [list(islice(left, size)) for size in cut([lengths[i] for i in share], budget)]
        # The largest first: the memory that it leaves fits all others.
        plan.append(sorted(cuts, key=lambda rows: -len(rows) * lengths[rows[0]]))
    rounds = max(1, *map(len, plan))
    return [cuts + [[] for _ in range(rounds - len(cuts))] for cuts in plan]
