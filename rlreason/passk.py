"""What k answers to a task are worth: by the best of them (pass@k) and by their vote (maj@k). Knows no model."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from statistics import fmean

import numpy as np

from rlreason.rewards.answer import NAMES, NUMBER, WORD, final, stated, without_echo
from rlreason.rewards.choice import LETTERS, choice
from rlreason.rewards.maths.notation import normalise, parts, unitless
from rlreason.types import Task

LONGEST = 200  # characters of a vote; a longer one is told by its digest
AMOUNT = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[-+]?\.\d+)(?:/(\d*[1-9]\d*))?")
FRAC = re.compile(r"(-?)\\frac\{(\d+)\}\{(\d+)\}")
TIGHT = re.compile(r"\s*([^\w\s])\s*")  # x + 1 is x+1, but 1 2 is not 12


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that one at least of k of n answers, c of them right, is right (2107.03374).

    Unbiased for "one at least of k is right", exact in integers and rounded once. Raises `ValueError` if k > n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@{k} of {n} answers, {c} of them right")
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


def maj_at_k(votes: Sequence[str | None], right: Sequence[float], k: int) -> float:
    """How often the most voted-for of k of n answers is right (self-consistency, 2203.11171), over all choices of the k.

    `votes[i]` is what answer i says and `right[i]` whether it is right, 0 to 1; those that say the same are as right as
    their mean. A tie is broken by lot. An answer that says nothing ("" or None) wins only where all k say nothing.
    The expected value of all this, without drawing anything. Raises `ValueError` if k > n.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"maj@{k} of {len(votes)} answers")
    voters: dict[str, list[float]] = {}
    for vote, score in zip(votes, right, strict=True):
        voters.setdefault(vote or "", []).append(float(score))
    silent = voters.pop("", [])
    return _majority(tuple(sorted((len(v), fmean(v)) for v in voters.values())), len(silent), fmean(silent or [0.0]), k)


@lru_cache(maxsize=1 << 16)  # most tasks of a benchmark vote like another: 16 answers fall apart in 231 ways
def _majority(clusters: tuple[tuple[int, float], ...], silent: int, spoken_for: float, k: int) -> float:
    """`maj_at_k` of clusters of (size, mean correctness) beside `silent` answers of mean correctness `spoken_for`.

    For each number of votes `top` that may win: ways[0, x, u] is the chance that of the clusters seen so far x answers
    were drawn, u clusters got `top` votes each and none got more; ways[1, x, u] is that times how right the u are, in
    sum. A cluster is one factor of this polynomial in x and u, and at x = k the winners share: ways[1, k, u] / u.
    """
    n = silent + sum(size for size, _ in clusters)

    def drawn(size: int, s: int) -> float:
        """Chance of s of `size`, each drawn with about k/n; that k are drawn in all is divided out at the end."""
        return math.comb(size, s) * k**s * (n + 1 - k) ** (size - s) / (n + 1) ** size if s <= size else 0.0

    total = spoken_for * drawn(silent, k) * drawn(n - silent, 0)
    for top in range(1, min(k, max((size for size, _ in clusters), default=0)) + 1):
        able = [cluster for cluster in clusters if cluster[0] >= top]
        others = n - sum(size for size, _ in able)  # they cannot win, so it does not matter how they vote
        ways = np.zeros((2, k + 1, k // top + 1))
        ways[0, :, 0] = [drawn(others, s) for s in range(k + 1)]
        for size, score in able:
            before, ways = ways, np.zeros_like(ways)
            for s in range(top):
                ways[:, s:] += drawn(size, s) * before[:, : k + 1 - s]
            tied = drawn(size, top) * before[:, : k + 1 - top, :-1]
            ways[:, top:, 1:] += tied
            ways[1, top:, 1:] += score * tied[0]
        total += float((ways[1, k, 1:] / np.arange(1, k // top + 1)).sum())
    return round(total / drawn(n, k), 12)


def voted(task: Task, text: str, metric: str, truncated: bool = False) -> str:
    """What an answer says, as the reward `metric` reads it, and spelt so that equal answers are equal texts; or "".

    White space, the case of letters and the format of numbers do not count: 1,000 = 1000.0, 1/2 = 0.5. For `numeric` it is
    the last number, for `choice` a letter, for `exact` and others that are `JUDGED_WHOLE` the whole final answer, and for
    `math` and any reward that is not known here the answer that is stated (`answer.stated`), without its unit. What is
    longer than `LONGEST` characters is told by its digest.
    """
    said = " ".join(READ.get(metric, _stated)(task, text, truncated).casefold().split())
    if len(said) <= 100 and (number := _number(said)) is not None:
        return str(number)
    return said if len(said) <= LONGEST else hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _number(said: str) -> Fraction | None:
    if (ratio := FRAC.fullmatch(said)) and int(ratio[3]):
        return Fraction(int(ratio[1] + ratio[2]), int(ratio[3]))
    amount = AMOUNT.fullmatch(said)
    return Fraction(amount[1].replace(",", "")) / int(amount[2] or 1) if amount else None


def _whole(task: Task, text: str, truncated: bool) -> str:
    return final(text)


def _last(task: Task, text: str, truncated: bool) -> str:
    return next(reversed(NUMBER.findall(final(text)[-2000:])), "").replace(",", "")


def _letter(task: Task, text: str, truncated: bool) -> str:
    asked = ((letter, Task(task.id, task.prompt, letter, info=task.info)) for letter in LETTERS)
    return next((letter for letter, option in asked if choice(option, text) == 1), "")


def _stated(task: Task, text: str, truncated: bool) -> str:
    truth = next(iter(stated(task.answer or "")), "")
    several = parts(normalise(truth[:1000])).unordered
    readings = stated(without_echo(text, task.prompt), several=several, truncated=truncated)
    if not readings:
        return ""
    words = WORD.search(NAMES.sub("", truth))  # then a number among the answer's words is not all that it says
    said = readings[0 if words else -1]
    return TIGHT.sub(r"\1", unitless(normalise(said))[0]) if len(said) <= 1000 else said


JUDGED_WHOLE = "exact", "gym", "code", "judge", "helpful", "harmless", "scorer"
READ: dict[str, Callable[[Task, str, bool], str]] = {
    **dict.fromkeys(JUDGED_WHOLE, _whole), "numeric": _last, "choice": _letter,
}  # fmt: skip
