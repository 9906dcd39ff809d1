"""What happened to a run besides its steps, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rlreason.report.text import duration, esc, real

EVENTS = 60  # listed at each end


def events_html(events: Sequence[dict[str, Any]]) -> str:
    """How often each kind of event occurred, and folded below it the first and the last of them."""
    if not events:
        return ""
    names = Counter(str(event.get("event", "?")) for event in events).most_common(12)
    told = ", ".join(f"{name} × {times:,}" if times > 1 else name for name, times in names)
    began = next((at for event in events if (at := real(event.get("at"))) is not None), None)
    since = f" The first was at {clock}." if (clock := _clock(began)) else ""
    if len(events) <= 2 * EVENTS:
        rows = [_row(event, began) for event in events]
    else:
        gap = f'<tr><td colspan="3" class="cut">{len(events) - 2 * EVENTS:,} more in events.jsonl</td></tr>'
        first, last = ([_row(event, began) for event in part] for part in (events[:EVENTS], events[-EVENTS:]))
        rows = [*first, gap, *last]
    return (
        f'<h3>Events</h3><p class="how">{esc(told, 600)}.{since}</p><details><summary>All, in order</summary>'
        '<div class="scroll"><table class="events"><thead><tr><th scope="col">after</th><th scope="col">event</th>'
        f'<th scope="col">details</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>'
    )


def _row(event: dict[str, Any], began: float | None) -> str:
    at = real(event.get("at"))
    after = "" if at is None or began is None else f"+{duration(max(0.0, at - began))}"
    rest = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("at", "event"))
    return (
        f'<tr><td title="{_clock(at)}">{after}</td><th scope="row">{esc(event.get("event", "?"), 80)}</th>'
        f"<td>{esc(rest, 300)}</td></tr>"
    )


def _clock(at: float | None) -> str:
    """2026-01-31 12:00:00 UTC, whatever the zone of the machine that writes the page."""
    if at is None or not 0 <= at < 253_402_300_800:  # the year 10000, where datetime ends
        return ""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
