"""Text and numbers as a page shows them. Whatever a run wrote is hostile: nothing reaches HTML but through `esc`."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

# What a browser would hide, or let reorder its neighbours, is shown instead: controls as their pictures, and the marks
# that turn the writing direction by number. A lone surrogate cannot be encoded at all.
_PICTURES = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A)} | {0x7F: 0x2421}
_TURNS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNSAFE = (
    _PICTURES
    | {c: f"⟦U+{c:04X}⟧" for c in _TURNS}
    | dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), 0xFFFD)
)


def esc(text: Any, limit: int = 100_000) -> str:
    """HTML for any text, in an element or a quoted attribute; of at most `limit` characters, then an ellipsis."""
    text = str(text)
    if len(text) > limit:
        text = text[:limit] + "…"
    return html.escape(text.replace("\r\n", "\n").translate(_UNSAFE))


@dataclass(frozen=True)
class Passage:
    """A long text cut for reading: how it begins and ends, some of the middle, and how many characters that leaves."""

    head: str
    middle: str = ""
    omitted: int = 0
    tail: str = ""


def passage(text: Any, head: int = 450, middle: int = 1500, tail: int = 300) -> Passage:
    """Cut `text` so that a megabyte costs no more than a page. The end is kept: it is where an answer stands."""
    text = text if isinstance(text, str) else "" if text is None else str(text)
    if len(text) <= head + tail + 400:  # a fold that hides a few lines is not worth its own
        return Passage(text)
    rest = text[head:-tail]
    return Passage(text[:head], rest[:middle], max(0, len(rest) - middle), text[-tail:])


def passage_html(cut: Passage) -> str:
    """`cut` as a block whose middle opens on demand, without a script."""
    if not cut.tail:
        return f'<div class="text" dir="auto">{esc(cut.head)}</div>'
    hidden = len(cut.middle) + cut.omitted
    left_out = f", {cut.omitted:,} of them not in this report" if cut.omitted else ""
    end = '<i class="cut">cut here</i>' if cut.omitted else ""
    return (
        f'<div class="text" dir="auto">{esc(cut.head)}<details><summary>{hidden:,} characters between{left_out}</summary>'
        f"{esc(cut.middle)}{end}</details>{esc(cut.tail)}</div>"
    )


def real(value: Any) -> float | None:
    """`value` if it is a number to reckon with, else None, as are null, NaN, text, and what sums would overflow with."""
    if not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) and abs(value) <= 1e100 else None


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits, 12,345 from a thousand on, 3.1e-7 where zeros would have to be counted."""
    value = real(value)
    if value is None:
        return "–"
    size = abs(value)
    if value == round(value) and size < 1e6:
        return _minus(f"{value:,.0f}")
    if 1000 <= size < 1e6:
        return _minus(f"{value:,.0f}")
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return _minus(f"{mantissa}e{int(exponent)}")
    return _minus(f"{value:.{digits}g}")


def signed(value: Any) -> str:
    """`number`, with a plus where it is one."""
    return ("+" if (real(value) or 0) > 0 else "") + number(value)


def count(value: Any) -> str:
    """12,345 up to a hundred thousand, then 1.23 M."""
    value = real(value)
    if value is None:
        return "–"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return _minus(f"{value / size:.3g} {unit}")
    return _minus(f"{value:,.0f}")


def percent(value: Any) -> str:
    value = real(value)
    return "–" if value is None else _minus(f"{value * 100:.1f} %")


def duration(seconds: Any) -> str:
    """0.8 s, 63 s, 12 min 5 s, 3 h 07 min."""
    seconds = real(seconds)
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{number(seconds, 2)} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def size(value: Any) -> str:
    """Bytes in GiB, or MiB below one."""
    value = real(value)
    if value is None:
        return "–"
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB"


def _minus(text: str) -> str:
    return text.replace("-", "−") if text.startswith("-") and "e" not in text else text
