"""One case of the catalogue of faults: what goes wrong, what has to happen, and how to see that it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """What happened, in a few words and with its numbers."""

    text: str
    recovery: float | None = None  # seconds from the fault to the next useful work
    lost: str = ""  # work that had to be done again: "2 steps"


@dataclass(frozen=True)
class Case:
    """`check` gets an empty folder, and fails with an `AssertionError` that says what happened instead."""

    number: int  # in the catalogue
    fault: str
    expected: str
    check: Callable[[Path], Seen]
    engines: bool = False  # does it start Ray, vLLM or DeepSpeed?
