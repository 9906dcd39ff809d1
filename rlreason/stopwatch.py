"""How long one rank works by itself: what tells a slow machine from one that waits for it. Knows nothing of torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Adds up the time that is spent inside its `with` blocks."""

    def __init__(self, event: Callable[[], Any] | None = None):
        """`event`: makes the timing events of a GPU, whose work is done later than it is asked for. None: the clock on the
        wall, by which a process that is stopped or starved is slow too."""
        self.event = event
        self.seconds = 0.0
        self.running: list[tuple[Any, Any]] = []  # events around what a GPU may be doing still

    @contextmanager
    def on(self) -> Iterator[None]:
        if self.event is None:
            began = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - began
            return
        begin, end = self.event(), self.event()
        begin.record()
        yield
        end.record()
        self.running.append((begin, end))

    def lap(self) -> float:
        """Seconds since the last lap. A GPU has done by now what was timed."""
        seconds = self.seconds + sum(begin.elapsed_time(end) for begin, end in self.running) / 1000
        self.seconds, self.running = 0.0, []
        return seconds
