"""Does the answer repeat itself?"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from rlreason.types import Task

LONGEST = 1_000_000  # characters that are looked at
# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces: a character of theirs counts as a word.
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]+")


def repetition(task: Task, text: str, *, n: int = 3, penalty: float = 1.0, characters: bool = False) -> float:
    """-penalty · (1 - distinct n-grams / all n-grams): 0 where nothing is said twice, towards -penalty for a loop.

    The form that open-r1 gives to the repetition penalty of "Demystifying Long CoT" (2502.03373, appendix C.2), with its
    defaults; the paper itself takes n = 40 tokens, and 0.05 off for each token of a repeated n-gram. The n-grams are of
    words, in lower case; of a script without spaces, each character is a word. With `characters` they are of
    characters, white space aside: say n = 20 or so. 0 for a text of fewer than n of them.
    Raises `ValueError` for n below 1 or a penalty below 0.
    """
    if n < 1 or penalty < 0:
        raise ValueError(f"n: {n} and penalty: {penalty:g}, but n is at least 1 and the penalty at least 0")
    text = text[:LONGEST].lower()
    units = [*"".join(text.split())] if characters else WORD.findall(text)
    total = len(units) - n + 1
    if total < 1:
        return 0.0
    numbers: dict[str, int] = {}
    row = np.array([numbers.setdefault(unit, len(numbers)) for unit in units])
    return penalty * (_distinct(row, n) / total - 1)


def _distinct(row: NDArray[np.int64], n: int) -> int:
    """How many different n-grams a row of numbers has, in time that grows with log n: by doubling.

    An n-gram is a pair of overlapping shorter ones, and pairs are numbered anew at each doubling.
    """
    have = 1
    while have < n:
        step = min(have, n - have)
        pairs = row[:-step] * (int(row.max()) + 1) + row[step:]
        row = np.unique(pairs, return_inverse=True)[1]
        have += step
    return len(np.unique(row))
