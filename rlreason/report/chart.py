"""Charts as inline SVG: widths in percent, text in pixels, so that a chart is as legible on a phone as on a desk.

What is drawn sits in a nested SVG that stretches; strokes do not (`vector-effect` in page.css). Colours are classes, so
that one page serves light and dark. The hover script reads the `data-` attributes; without it nothing is missing but
the values between the ends.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlreason.report.curves import Curve, Floats, Frame, bucket_means, whole_ticks
from rlreason.report.text import esc, number, percent

SIDE = 1000  # the nested drawing's own units, each way


@dataclass(frozen=True)
class Interval:
    """A point with its 95 % interval, on a row of `intervals`. Without one it is the point alone."""

    at: float
    span: tuple[float, float] | None
    kind: str  # before or after


def lines(
    ident: str,
    title: str,
    hint: str,
    curves: Sequence[Curve],
    frame: Frame,
    steps: tuple[int, int],
    threshold: tuple[float, str] | None = None,
    wide: bool = False,
    faults: Sequence[str] = (),
) -> str:
    """A figure of `curves` over `steps`, raw values faint behind the moving average."""
    drawn, legend, told = [], [], []
    for at, c in enumerate(curves):
        x = _across(c.steps, *steps)
        low, high, smooth = (_up(frame, values) for values in (c.low, c.high, c.smooth))
        if c.thinned:
            there = zip(x, high, strict=True)
            back = zip(x[::-1], low[::-1], strict=True)
            drawn.append(f'<path class="band s{at}" d="M{_points((*there, *back))}z"/>')
        else:
            drawn.append(f'<path class="raw s{at}" d="{"".join(f"M{a},{b}h0" for a, b in zip(x, low, strict=True))}"/>')
        drawn.append(f'<path class="line s{at}" d="M{_points(zip(x, smooth, strict=True))}h0"/>')
        fell = f"{number(c.smooth[0])} → {number(c.smooth[-1])}" if len(c.steps) > 1 else number(c.smooth[-1])
        legend.append(_entry(f"s{at}", c.name, fell, {"x": c.steps, "mid": c.smooth, "low": c.low, "high": c.high}))
        told.append(
            f"{c.name}: {fell} from step {c.steps[0]:,} to {c.steps[-1]:,}, "
            f"between {number(c.low.min())} and {number(c.high.max())}."
        )
    beyond = [note for c in curves for note in _beyond(c, frame)]
    rows = [(number(tick), float(frame.place(np.array([tick]))[0])) for tick in frame.ticks]
    above = ""
    if threshold and frame.low < threshold[0] <= frame.high:
        y = 100 - 100 * float(frame.place(np.array([threshold[0]]))[0])
        above = (
            f'<line class="limit" x1="0" x2="100%" y1="{y:.1f}%" y2="{y:.1f}%"/>'
            f'<text class="limit" x="100%" y="{y:.1f}%" dy="-5" text-anchor="end">{esc(threshold[1])}</text>'
        )
    svg = _svg(ident, title, " ".join(told), rows, steps, "".join(drawn), above)
    return _figure(title, hint, legend, svg, wide, beyond, faults)


@dataclass(frozen=True)
class Series:
    """Scores at some steps, each with its interval, which is the value alone where there is none."""

    name: str
    steps: np.ndarray  # [S] int64, rising
    means: Floats  # [S]
    low: Floats  # [S]
    high: Floats  # [S]


def points(
    ident: str,
    title: str,
    hint: str,
    series: Sequence[Series],
    frame: Frame,
    mark: tuple[int, str] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """A figure of `series` as points with their intervals, joined; `mark` is a step to be seen, and its name.

    Where intervals would hide each other they stand side by side, a few pixels from their step.
    """
    first, last = (int(edge([edge(s.steps) for s in series])) for edge in (min, max))
    drawn, legend, told = [], [], []
    for at, s in enumerate(series):
        x = _across(s.steps, first, last) + round((at - (len(series) - 1) / 2) * 5)
        low, high, middle = (_up(frame, values) for values in (s.low, s.high, s.means))
        bars = "".join(f"M{a},{b}V{c}" for a, b, c in zip(x, low, high, strict=True))
        dots = "".join(f"M{a},{b}h0" for a, b in zip(x, middle, strict=True))
        drawn.append(
            f'<path class="error s{at}" d="{bars}"/><path class="joined s{at}" d="M{_points(zip(x, middle, strict=True))}"/>'
            f'<path class="dot s{at}" d="{dots}"/>'
        )
        fell = " → ".join(percent(value) for value in (s.means[[0, -1]] if len(s.steps) > 1 else s.means))
        legend.append(_entry(f"s{at}", s.name, fell, {"x": s.steps, "mid": s.means, "low": s.low, "high": s.high}))
        told.append(f"{s.name}: {fell} from step {s.steps[0]:,} to {s.steps[-1]:,}.")
    above = ""
    if mark:
        place = float(_across(np.array([mark[0]]), first, last)[0]) / SIDE * 100
        end = place > 50
        above = (
            f'<line class="limit" x1="{place:.2f}%" x2="{place:.2f}%" y1="0" y2="100%"/>'
            f'<text class="limit" x="{place:.2f}%" y="100%" dx="{-7 if end else 7}" dy="-7" '
            f'text-anchor="{"end" if end else "start"}">{esc(mark[1], 40)}</text>'
        )
    rows = [(f"{tick * 100:.3g} %", float(frame.place(np.array([tick]))[0])) for tick in frame.ticks]
    svg = _svg(ident, title, " ".join(told), rows, (first, last), "".join(drawn), above, 14)
    return _figure(title, hint, legend, svg, True, notes)


def stack(
    ident: str,
    title: str,
    hint: str,
    names: Sequence[str],
    values: Floats,
    at_steps: np.ndarray,
    buckets: int,
    unit: str = "",
) -> str:
    """A figure of `values` [P, S], one layer for each of `names`, piled on each other at every step of `at_steps`."""
    cuts, means = bucket_means(values, buckets)
    tops = np.cumsum(means, axis=0)
    total = tops[-1]
    ceiling, note = max(float(total.max()), 1e-6), []
    usual = float(np.percentile(total, 90))
    if ceiling > 3 * usual > 0:  # a first step that compiles would hide all others
        high = at_steps[cuts[:-1]][total.argmax()]
        note = [f"The tallest bar, {number(ceiling)}{unit} at step {high:,}, is cut off."]
        ceiling = 1.6 * usual
    first, last = float(at_steps[0]) - 0.5, float(at_steps[-1]) + 0.5
    edges = np.append(at_steps[cuts[:-1]] - 0.5, last)
    x = np.rint((edges - first) / (last - first) * SIDE).astype(int)
    y = np.rint(SIDE * (1 - np.minimum(tops / ceiling, 1))).astype(int)
    floor = np.full_like(y[0], SIDE)
    drawn, legend = [], []
    for layer, name in enumerate(names):
        under = floor if layer == 0 else y[layer - 1]
        there = [p for i in range(len(floor)) for p in ((x[i], y[layer][i]), (x[i + 1], y[layer][i]))]
        back = [p for i in reversed(range(len(floor))) for p in ((x[i + 1], under[i]), (x[i], under[i]))]
        drawn.append(f'<path class="layer s{layer}" d="M{_points((*there, *back))}z"/>')
        middle = f"{number(np.median(values[layer]))}{unit}"
        legend.append(_entry(f"s{layer}", name, middle, {"x": at_steps[cuts[1:] - 1], "mid": means[layer]}))
    told = ", ".join(f"{name} {number(np.median(values[i]))}{unit}" for i, name in enumerate(names))
    rows = [(number(ceiling * part) + unit, part) for part in _quarters(ceiling)]
    steps = (int(at_steps[0]), int(at_steps[-1]))
    svg = _svg(ident, title, f"Medians: {told}.", rows, steps, "".join(drawn), "")
    return _figure(title, hint, legend, svg, True, note)


def intervals(ident: str, title: str, rows: Sequence[tuple[str, Sequence[Interval], str]], frame: Frame) -> str:
    """Points with their 95 % intervals, a row for each (label, its points, what stands at its end)."""
    tall, body = 46, []
    for index, (label, points, end) in enumerate(rows):
        y = tall * index + tall // 2
        body.append(f'<text class="label" x="-12" y="{y}" dy=".35em" text-anchor="end">{esc(label, 24)}</text>')
        body.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        places = [(p, 0 if len(points) == 1 else (-6, 6)[i % 2]) for i, p in enumerate(points)]
        for p, off in places:
            a, b, c = (100 * frame.place(np.array([p.at, *(p.span or (p.at, p.at))]))).tolist()
            body.append(f'<line class="span {p.kind}" x1="{b:.2f}%" x2="{c:.2f}%" y1="{y + off}" y2="{y + off}"/>')
            body.append(f'<circle class="{p.kind}" cx="{a:.2f}%" cy="{y + off}" r="5.5"/>')
        body.append(f'<text class="end" x="100%" dx="12" y="{y}" dy=".35em">{esc(end, 40)}</text>')
    base = tall * len(rows)
    for index, tick in enumerate(frame.ticks):
        x = 100 * float(frame.place(np.array([tick]))[0])
        kind = "tick odd" if index % 2 else "tick"  # the odd ones go where there is no room
        body.append(f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{base}"/>')
        body.append(f'<text class="{kind}" x="{x:.2f}%" y="{base}" dy="17" text-anchor="middle">{tick * 100:.3g} %</text>')
    told = "; ".join(f"{label}: {end}" for label, _, end in rows)
    return (
        f'<div class="plot intervals"><svg {_named(ident)} width="100%" height="{base}">'
        f'<title id="{ident}-t">{esc(title)}</title><desc id="{ident}-d">{esc(told)}</desc>{"".join(body)}</svg></div>'
    )


def _figure(
    title: str, hint: str, legend: Sequence[str], svg: str, wide: bool, notes: Sequence[str], faults: Sequence[str] = ()
) -> str:
    said = "".join(f'<p class="note bad">{esc(fault, 400)}</p>' for fault in faults)
    said += "".join(f'<p class="note">{esc(note, 400)}</p>' for note in notes)
    return (
        f'<figure class="chart{" wide" if wide else ""}"><figcaption><h4>{esc(title, 80)}</h4>'
        f'<p>{esc(hint)}</p></figcaption><ul class="legend">{"".join(legend)}</ul>{svg}<div>{said}</div></figure>'
    )


def _entry(kind: str, name: str, value: str, data: dict[str, Any]) -> str:
    """A legend's line, which holds the numbers that the script reads out."""
    if "low" in data and np.array_equal(data["low"], data["high"]):
        data = {key: values for key, values in data.items() if key != "high"}
    held = " ".join(f'data-{key}="{_json(values)}"' for key, values in data.items())
    return f'<li class="{kind}" {held}><span class="key"></span>{esc(name, 40)} <b>{esc(value)}</b></li>'


def _json(values: np.ndarray) -> str:
    if values.dtype.kind == "i":
        return json.dumps(values.tolist(), separators=(",", ":"))
    return json.dumps([float(f"{v:.4g}") for v in values], separators=(",", ":"))


def _svg(
    ident: str,
    title: str,
    told: str,
    rows: Sequence[tuple[str, float]],
    steps: tuple[int, int],
    drawn: str,
    above: str,
    apart: int = 8,
) -> str:
    """Axes around `drawn`: `rows` are (label, height from 0 to 1), `apart` pixels from it; `steps` the first and last ones."""
    axes = []
    for label, height in rows:
        y = f"{100 - 100 * height:.2f}%"
        axes.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        axes.append(f'<text class="tick" x="{-apart}" y="{y}" dy=".35em" text-anchor="end">{esc(label)}</text>')
    for step in whole_ticks(*steps):
        x = _across(np.array([step]), *steps)[0] * 100 / SIDE
        label = f"{step // 1000:,}k" if step >= 10_000 and step % 1000 == 0 else f"{step:,}"
        anchor = "start" if x < 5 else "end" if x > 95 else "middle"
        axes.append(f'<text class="tick" x="{x:.2f}%" y="100%" dy="17" text-anchor="{anchor}">{label}</text>')
    return (
        f'<div class="plot"><svg {_named(ident)} tabindex="0" width="100%" height="100%" '
        f'data-first="{steps[0]}" data-last="{steps[1]}"><title id="{ident}-t">{esc(title, 80)}</title>'
        f'<desc id="{ident}-d">{esc(told, 2000)}</desc>{"".join(axes)}'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" width="100%" height="100%" preserveAspectRatio="none">{drawn}</svg>{above}'
        '<line class="cursor" x1="0" x2="0" y1="0" y2="100%"/></svg></div>'
    )


def _named(ident: str) -> str:
    return f'role="img" aria-labelledby="{ident}-t {ident}-d"'


def _across(steps: np.ndarray, first: int, last: int) -> np.ndarray:
    """Where steps stand from left to right, in the drawing's units. The only step of a run stands in the middle."""
    if first == last:
        return np.full(len(steps), SIDE // 2)
    return np.rint((steps - first) / (last - first) * SIDE).astype(int)


def _up(frame: Frame, values: Floats) -> np.ndarray:
    return np.rint(SIDE * (1 - frame.place(values))).astype(int)


def _points(points: Any) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _quarters(ceiling: float) -> list[float]:
    """Heights of a few round values, as parts of `ceiling`."""
    unit = 10.0 ** np.floor(np.log10(ceiling / 2))
    step = next(m * unit for m in (1, 2, 5, 10) if ceiling / (m * unit) <= 5)
    return [float(i * step / ceiling) for i in range(int(ceiling / step + 1e-9) + 1)]


def _beyond(c: Curve, frame: Frame) -> list[str]:
    notes = []
    for word, values, extreme, over in (
        ("Above", c.high, c.high.argmax(), c.high > frame.high * (1 + 1e-9 * np.sign(frame.high))),
        ("Below", c.low, c.low.argmin(), not frame.log and c.low < frame.low * (1 - 1e-9 * np.sign(frame.low))),
    ):
        if np.any(over):
            rest = f", the furthest of {int(np.sum(over))} points" if np.sum(over) > 1 else ""
            place = f"{'near' if c.thinned else 'at'} step {c.steps[extreme]:,}"
            notes.append(f"{word} the frame: {c.name} {number(values[extreme])} {place}{rest}.")
    return notes
