"""Which samples share a forward pass, and which of them a row of it. numpy only.

A packed row holds several samples one after the other, whose positions start at 0 each: a model that goes by them lets
each sample see itself alone. What is read is put back as one row per sample, so nothing downstream knows of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = list[list[int]]  # the samples in each row, from left to right
OWN = 128  # a 30th is what a micro-batch costs a CPU; with a 128th, a step is 2 % longer and less than a twentieth is padding
NEVER = 1 << 60  # tokens
MOST = 8  # samples of like length in a row: more would save less than a hundredth


class Layout(NamedTuple):
    """Where the tokens of N samples, the longest of T, stand in M rows of L."""

    positions: NDArray[np.int64]  # [M, L], of each token in its sample; padding counts on its own
    cells: NDArray[np.int64]  # [N, T], which cell of [M, L], counted through, holds the token; M · L: none, it is padding


def cut_padded(lengths: Sequence[int], budget: int) -> list[int]:
    """How many of `lengths`, longest first, share each micro-batch, where each has a row and pads to its longest.

    At most `budget` tokens, padding included (a longer sample goes alone). Of all such cuts the one that costs least, where a
    micro-batch costs its tokens and `budget / OWN` of its own, as one with few tokens keeps no core busy: little padding,
    and not too many of them.
    """
    each = np.array(lengths)
    cost = np.zeros(len(each) + 1)  # of the best cut of the first samples
    begin = np.zeros(len(each) + 1, np.int64)  # of the last micro-batch of that cut
    for end in range(1, len(each) + 1):
        first = max(0, end - max(1, budget // int(each[end - 1])))
        area = each[first:end] * np.arange(end - first, 0, -1)
        area[:-1][area[:-1] > budget] = NEVER
        total = cost[first:end] + area + budget / OWN
        best = int(total.argmin())
        cost[end], begin[end] = total[best], first + best
    sizes, end = [], len(each)
    while end:
        sizes.append(end - int(begin[end]))
        end = int(begin[end])
    return sizes[::-1]


def cut_packed(lengths: Sequence[int], budget: int, hidden: int) -> list[int]:
    """The same where samples share rows as `pack` says.

    One for which rows as wide as the longest sample are dearer by a tenth than rows of its own opens the next
    micro-batch, if there are some already.
    """
    sizes, start = [], 0
    while start < len(lengths):
        sizes.append(_first_packed(lengths[start:], budget, hidden))
        start += sizes[-1]
    return sizes


def _first_packed(lengths: Sequence[int], budget: int, hidden: int) -> int:
    count, real = 0, 0
    for length in lengths:
        real += length
        wide = dearer(lengths[0], hidden) - dearer(length, hidden)
        if count and (real > budget or (real > budget / 8 and wide > 0.1)):
            break
        count += 1
    while count > 1 and (size := area(pack(lengths[:count], hidden), lengths)) > budget:
        count = count * budget // size  # size is above budget, so this is less
    return max(1, count)


def pack(lengths: Sequence[int], hidden: int) -> Rows:
    """The rows that cost least: their area, by how much their width makes them dearer.

    Tried are as many rows as the real tokens fill at the longest sample's width, one more, and those with 1, 2, …
    samples each, which suits samples of like length.
    """
    tried = {-(-len(lengths) // each) for each in range(1, MOST + 1)}
    tried |= {min(len(lengths), -(-sum(lengths) // max(lengths)) + more) for more in (0, 1)}

    def cost(rows: Rows) -> float:
        return area(rows, lengths) * (1 + dearer(width(rows, lengths), hidden))

    return min((deal(lengths, count) for count in sorted(tried, reverse=True)), key=cost)


def dearer(width: int, hidden: int) -> float:
    """What attention in a row costs a token, over what all else does.

    A layer has about 12 · hidden² weights, and attention takes 2 · hidden · width multiplications a token: as much, where
    rows are 6 · hidden wide. Measured on a CPU, forward and backward: 750 for a hidden size of 128, 3000 for 512.
    """
    return width / (6 * hidden)


def deal(lengths: Sequence[int], count: int) -> Rows:
    """`count` rows as even as can be: longest first, each into the row that is emptiest (Graham 1969)."""
    rows: Rows = [[] for _ in range(count)]
    heap = [(0, row) for row in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # stable: the same on every rank
        fill, row = heap[0]
        rows[row].append(i)
        heapq.heapreplace(heap, (fill + lengths[i], row))
    return rows


def width(rows: Rows, lengths: Sequence[int]) -> int:
    return max(sum(lengths[i] for i in row) for row in rows)


def area(rows: Rows, lengths: Sequence[int]) -> int:
    """Tokens put through the model, padding included."""
    return len(rows) * width(rows, lengths)


def layout(rows: Rows, lengths: Sequence[int]) -> Layout:
    wide = width(rows, lengths)
    positions = np.zeros((len(rows), wide), np.int64)
    cells = np.full((len(lengths), max(lengths)), positions.size, np.int64)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            here = np.arange(lengths[i])
            positions[r, start : start + lengths[i]] = here
            cells[i, : lengths[i]] = r * wide + start + here
            start += lengths[i]
        positions[r, start:] = np.arange(wide - start)
    return Layout(positions, cells)
