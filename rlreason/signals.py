"""What a signal asks of a run: to end after its step, or at once; and how a child ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PARENT_DEATH = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def die_with(parent: int) -> bool:
    """Let this process be killed when `parent`, which started it, ends: else it writes on while the same command runs
    again. False if it is over already."""
    ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)
    return os.getppid() == parent


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """SIGTERM, SIGUSR1 (Slurm's warning) and a first Ctrl-C end the run after its step; a second Ctrl-C at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(number)

    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
