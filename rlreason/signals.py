"""What a signal asks of a run: to end after its step, or at once; and how a child ends with its parent."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rlreason.errors import Interrupted

T = TypeVar("T")

PARENT_DEATH = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def die_with(parent: int) -> bool:
    """Let this process be killed when `parent`, which started it, ends: else it writes on while the same command runs
    again. False if it is over already."""
    ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)
    return os.getppid() == parent


async def unless(stop: Callable[[], bool], work: Awaitable[T], doing: str) -> T:
    """What `work` comes to. Raises `Interrupted` if the run is asked to stop first; the work is given up then."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if stop():
                raise Interrupted(f"stopped while {doing}; the same command goes on from there")
            await asyncio.wait({task}, timeout=0.2)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


LATE: list[int] = []  # what was asked of a run that had nothing left to stop


@contextmanager
def ending() -> Iterator[None]:
    """Outside of `stopping`, as before anything has started: SIGTERM and SIGUSR1 end the command there and then.

    By `SystemExit`, which no library takes for an error of its own.
    """

    def end(number: int, frame: Any) -> None:
        print("rlreason: stopped while nothing was learned; the same command goes on from there", file=sys.stderr, flush=True)
        raise SystemExit(Interrupted.code)

    LATE.clear()
    old = {s: signal.signal(s, end) for s in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def between(done: str) -> None:
    """Raises `Interrupted` if what is `done` was asked to stop when it was too late for it."""
    if LATE:
        raise Interrupted(f"stopped after {done}; the same command goes on from there")


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
        LATE.extend(asked)
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
