"""Numbers on their way to a chart: smoothed, thinned to what an eye can tell apart, framed. Knows nothing of SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlreason.report.read import Metrics

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)  # arrays have no truth value to compare by
class Curve:
    """One metric over its steps, thinned to buckets of neighbouring steps. A short run has one step in each."""

    name: str
    steps: NDArray[np.int64]  # [B] the last step of each bucket
    smooth: Floats  # [B] the moving average at that step; it starts from the first step's own value
    low: Floats  # [B] the least raw value in the bucket
    high: Floats  # [B] the greatest

    @property
    def thinned(self) -> bool:
        return bool((self.low != self.high).any())


@dataclass(frozen=True)
class Frame:
    """What a chart's vertical axis covers. Values beyond are drawn on its edge, and counted."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, values: Floats) -> Floats:
        """0 at the lower edge, 1 at the upper, never beyond."""
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log10(np.maximum(values, low)), math.log10(low), math.log10(high)
        return np.clip((values - low) / (high - low), 0.0, 1.0)


def kept(steps: int, buckets: int) -> int:
    """How many points are drawn of so many steps."""
    return steps if steps <= 2 * buckets else buckets


def span_of(steps: int) -> int:
    """How many steps the moving average looks back on: a thirtieth of the run, so that its shape stays visible."""
    return max(1, min(1000, round(steps / 30)))


def ema(values: Floats, span: int) -> Floats:
    """Exponential moving average with weight 2 / (span + 1), corrected for its start: the first value is values[0]."""
    keep = 1 - 2 / (span + 1)
    mean = weight = 0.0
    smooth = np.empty(len(values))
    for at, value in enumerate(values.tolist()):
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smooth[at] = mean / weight
    return smooth


def curve(metrics: Metrics, name: str, buckets: int, log: bool = False, exact: bool = False) -> Curve | None:
    """The metric `name`, or None where no step has a number for it. `exact` draws it as it is, unsmoothed.

    Up to twice `buckets` steps are kept one by one: pairs of steps would look ragged, and save little.

    On a logarithmic axis the logarithm is averaged, so that one spike does not lift the line for a whole span.
    """
    column = metrics.columns.get(name)
    if column is None or not (known := np.isfinite(column)).any():
        return None
    steps, values = metrics.steps[known], column[known]
    span = 1 if exact else span_of(len(values))
    if log:
        floor = values[values > 0].min(initial=1.0)
        smooth = 10 ** ema(np.log10(np.maximum(values, floor)), span)
    else:
        smooth = ema(values, span)
    cuts = np.linspace(0, len(values), kept(len(values), buckets) + 1).astype(int)
    ends = cuts[1:] - 1
    return Curve(
        name,
        steps[ends],
        smooth[ends],
        np.minimum.reduceat(values, cuts[:-1]),
        np.maximum.reduceat(values, cuts[:-1]),
    )


def frame(curves: list[Curve], log: bool = False, include: float | None = None) -> Frame:
    """An axis for all of `curves`, with `include` on it. A few extreme values do not flatten the rest."""
    values = np.concatenate([part for c in curves for part in (c.low, c.high)])
    if include is not None:
        values = np.append(values, include)
    return _decades(values) if log else _linear(values)


def _linear(values: Floats) -> Frame:
    low, high = float(values.min()), float(values.max())
    if len(values) >= 60:  # fewer have no tail to speak of
        q2, q98 = (float(q) for q in np.percentile(values, [2, 98]))
        if high - q98 > 3 * (q98 - q2) > 0:
            high = q98 + 0.3 * (q98 - q2)
        if q2 - low > 3 * (q98 - q2) > 0:
            low = q2 - 0.3 * (q98 - q2)
    if 0 < low < 0.6 * high:
        low = 0.0  # a curve that nearly reaches zero is read against it
    if high - low <= max(1e-100, 1e-9 * max(abs(high), abs(low))):  # one value only
        pad = max(abs(high) * 0.5, 1e-100) if high else 1.0
        low, high = low - pad, high + pad
    return axis(low, high)


def axis(low: float, high: float) -> Frame:
    """From `low` to `high` and a little further, to round values."""
    step = _nice((high - low) / 4)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Frame(low, high, tuple(low + step * i for i in range(round((high - low) / step) + 1)))


def around(edges: Sequence[float]) -> Frame:
    """An axis around scores and the `edges` of their intervals, not so short that a point looks like a leap."""
    low, high = float(min(edges)), float(max(edges))
    short = max(0.0, max(0.04, 1e-6 * max(abs(low), abs(high))) - (high - low)) / 2
    return axis(max(0.0, low - short) if low >= 0 else low - short, high + short)


def _decades(values: Floats) -> Frame:
    positive = np.clip(values[values > 0], 1e-30, 1e30)
    if not len(positive):
        return Frame(1e-9, 1.0, (1e-9, 1e-6, 1e-3, 1.0), log=True)
    low, high = math.floor(math.log10(positive.min())), math.ceil(math.log10(positive.max()))
    if (values <= 0).any() or low == high:
        low -= 1  # a row for the zeros
    every = -(-(high - low) // 5)
    return Frame(10.0**low, 10.0**high, tuple(10.0**e for e in range(low, high + 1, every)), log=True)


def _nice(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, … from `step` on."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(m * unit for m in (1, 2, 5, 10) if m * unit >= step * 0.999)


def whole_ticks(first: int, last: int, most: int = 5) -> list[int]:
    """Round step numbers within [first, last], for a horizontal axis."""
    if last <= first:
        return [first]
    step = max(1, round(_nice((last - first) / most)))
    return list(range(-(-first // step) * step, last + 1, step))


def bucket_means(values: Floats, buckets: int) -> tuple[NDArray[np.int64], Floats]:
    """`values` [P, S] averaged over at most `buckets` runs of neighbours: (their cuts [B + 1], means [P, B])."""
    cuts = np.linspace(0, values.shape[1], min(buckets, values.shape[1]) + 1).astype(np.int64)
    return cuts, np.add.reduceat(values, cuts[:-1], axis=1) / np.diff(cuts)
