"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlreason.types import Metrics

BARS = "▁▂▃▄▅▆▇█"
SHOWN = ("reward", "loss", "policy_gap", "entropy", "length", "truncated", "lag", "grad_norm", "lr")
PHASES = ("rollout", "train", "sync", "save", "log")


class Display:
    """`with Display(name, steps) as display: display.step(metrics)`."""

    def __init__(self, name: str, steps: int, console: Console | None = None):
        self.name, self.steps = name, steps
        self.console = console or Console(file=sys.stdout, highlight=False)
        self.history: list[Metrics] = []
        self.live = Live(console=self.console, refresh_per_second=4, transient=False) if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        self.console.print(Text(f"{self.name}: {text}"), soft_wrap=True)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Headings, and lines below them."""
        table = Table(*rows[0], title=self.name, title_justify="left")
        for row in rows[1:]:
            table.add_row(*row)
        self.console.print(table)

    def step(self, metrics: Metrics) -> None:
        self.history.append(metrics)
        if self.live:
            self.live.update(self._panel())
        else:
            self.console.print(Text(line(self.name, metrics, self.steps, self._eta())), soft_wrap=True)

    def _eta(self) -> float:
        """Seconds to go, from the mean of the last steps."""
        recent = [m["time/step"] for m in self.history[-20:]]
        return sum(recent) / len(recent) * (self.steps - self.history[-1]["step"])

    def _panel(self) -> Group:
        last = self.history[-1]
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self.name, style="bold"),
            f"step {last['step']:.0f}/{self.steps}",
            ProgressBar(total=max(self.steps, 1), completed=last["step"], width=24),
            f"{duration(last['time/elapsed'])} so far, {duration(self._eta())} to go",
            f"{last['time/tokens_per_second']:.0f} tokens/s",
        )
        table = Table.grid(padding=(0, 2))
        parts = [key for key in last if key.startswith("reward/")]
        for key in (*SHOWN[:1], *parts, *SHOWN[1:]):
            if key in last:
                table.add_row(key, number(last[key]), sparkline([m[key] for m in self.history if key in m]))
        seconds = "  ".join(f"{p} {last[f'time/{p}']:.2f}" for p in PHASES if f"time/{p}" in last)
        return Group(head, table, Text(f"seconds: {seconds}  = {last['time/step']:.2f}", style="dim"))


def line(name: str, metrics: Metrics, steps: int, eta: float) -> str:
    """One step as plain text."""
    values = "  ".join(f"{key} {number(metrics[key])}" for key in SHOWN if key in metrics)
    seconds = " + ".join(f"{metrics[f'time/{p}']:.2f} {p}" for p in PHASES if f"time/{p}" in metrics)
    return f"{name} {metrics['step']:.0f}/{steps}  {values}  {metrics['time/step']:.2f} s = {seconds}  eta {duration(eta)}"


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """The course of a number in one line of text."""
    shown = values[-width:] if len(values) <= width else [values[i * len(values) // width] for i in range(width)]
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(BARS[round((v - low) * scale)] if v == v else " " for v in shown)


def number(value: float) -> str:
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.4g}"


def duration(seconds: float) -> str:
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"
