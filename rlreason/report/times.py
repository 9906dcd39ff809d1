"""Where a run's time went: its phases, step by step, and its throughput."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlreason.report.chart import stack
from rlreason.report.curves import Floats
from rlreason.report.read import Metrics
from rlreason.report.text import count, duration, esc, number, percent

ORDER = ("rollout", "train", "sync", "save", "log")  # in which the phases of a step happen
NOT_PHASES = ("step", "elapsed", "tokens_per_second", "straggle")
MOST = 7  # phases in one chart, beside "other"


def times_html(metrics: Metrics, ident: str, buckets: int) -> str:
    """A stacked chart of the phases of each step, and tables of the phases and of the throughput."""
    layers = phases(metrics)
    if not layers:
        return ""
    hint = "seconds, by phase; the legend has medians"
    values = np.stack(list(layers.values()))
    chart = stack(f"{ident}-time", "Time per step", hint, list(layers), values, metrics.steps, min(buckets, 160), " s")
    total = values.sum()
    spent = [
        (
            name,
            duration(layer.sum()),
            percent(layer.sum() / total),
            *(number(value) for value in (*np.percentile(layer, [50, 90]), layer.max())),
        )
        for name, layer in layers.items()
    ]
    left = _rows(("phase", "in all", "share", "median, s", "90th percentile, s", "longest, s"), spent)
    right = _rows(("throughput", "median", "10th percentile", "90th percentile"), _rates(metrics))
    return f'<h3>Time</h3><div class="charts">{chart}</div><div class="tables">{left}{right}</div>'


def phases(metrics: Metrics) -> dict[str, Floats]:
    """Seconds of each phase at every step, {name: [S]}. What no timer covers is "other", so that they add up to the step."""
    timed = [name[5:] for name in metrics.columns if name.startswith("time/") and name[5:] not in NOT_PHASES]
    timed.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    layers = {name: _seconds(metrics, name) for name in timed[:MOST]}
    whole = _seconds(metrics, "step")
    rest = (whole - sum(layers.values(), np.zeros(len(whole)))).clip(0)
    if rest.sum() > 0.01 * whole.sum():
        layers["other" if layers else "step"] = rest
    return {name: layer for name, layer in layers.items() if layer.any()}


def _seconds(metrics: Metrics, phase: str) -> Floats:
    """[S], 0 where the file does not say."""
    column = metrics.columns.get(f"time/{phase}", np.zeros(len(metrics.steps)))
    return np.nan_to_num(column).clip(0, 1e12)


def _rates(metrics: Metrics) -> list[tuple[str, ...]]:
    """(name, median, 10th and 90th percentile) of what got done in a time."""
    known = {"tokens a second": metrics.get("time/tokens_per_second"), "tokens a step": metrics.get("tokens")}
    spent = metrics.get("time/step")
    known["steps an hour"] = 3600 / spent[spent > 0]
    return [
        (name, *(count(value) for value in np.percentile(values, [50, 10, 90])))
        for name, values in known.items()
        if len(values)
    ]


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{esc(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{esc(name, 60)}</th>{"".join(f"<td>{esc(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
