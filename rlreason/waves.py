"""Tasks that are asked together, and answered one after the other: few messages, however many tasks. Knows no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from rlreason.types import Group, Task

Wave = tuple[int, int, int]  # its number, this request's place in it, and how many requests it has
Found = list[tuple[int, Group]]  # what is answered, and its place in the wave


class Waves:
    """`answer` takes a wave and returns what is answered first, `more` what is answered next, until all of it was told.

    Either waits for one answer at least, and takes along all that are there by then: who asks slowly is told much at a
    time. Raises what answering one of them raised; the others are not told of any more.
    """

    def __init__(self, sample: Callable[[Task, int, Wave], Awaitable[Group]]):
        self.sample = sample
        self.open: dict[int, dict[asyncio.Future[Group], int]] = {}  # wave -> what is not told yet, and its place

    async def answer(self, number: int, tasks: Sequence[tuple[Task, int]]) -> Found:
        """`tasks`, with the number of samples of each, as wave `number`: numbers are never used twice."""
        self.open[number] = {
            asyncio.ensure_future(self.sample(task, n, (number, place, len(tasks)))): place
            for place, (task, n) in enumerate(tasks)
        }
        return await self.more(number)

    async def more(self, number: int) -> Found:
        wave = self.open[number]
        done, _ = await asyncio.wait(wave, return_when=asyncio.FIRST_COMPLETED)
        try:
            found = [(place, answer.result()) for answer, place in wave.items() if answer in done]
        except BaseException:
            for answer in self.open.pop(number):
                answer.cancel()
            raise
        for answer in done:
            del wave[answer]
        if not wave:
            del self.open[number]
        return found
