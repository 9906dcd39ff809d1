"""What the order of groups costs, where answers are of very different lengths: first in, first out, or the first finished.

    python benchmarks/order.py

In virtual time: 64 groups of 8 answers a step, lengths log-normal with a sigma of 0.8 (median 403 tokens of 10 ms, at most
4,096), engines with slots for so many answers at a time, training of 20 s a step. Under the first finished a group is taken out
of turn only where every other one can still be taken within `max_lag`. Prints a step beside the larger of training and the
slots' work: FIFO, and then the first finished.
"""

from __future__ import annotations

import asyncio

import numpy as np

GROUPS, SAMPLES, TRAINING, STEPS = 64, 8, 20.0, 60


class Jumping(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Engines:
    def __init__(self, slots: int):
        self.slots, self.busy, self.rng = asyncio.Semaphore(slots), 0.0, np.random.default_rng(0)

    async def group(self) -> None:
        await asyncio.gather(*map(self.answer, np.exp(self.rng.normal(6, 0.8, SAMPLES)).clip(1, 4096)))

    async def answer(self, tokens: float) -> None:
        async with self.slots:
            await asyncio.sleep(tokens / 100)
        self.busy += tokens / 100


async def steps(slots: int, max_lag: int, fifo: bool) -> float:
    """A step's time over what it has to take."""
    engines, now = Engines(slots), asyncio.get_running_loop().time
    began, flying = now(), list[tuple[int, asyncio.Task[None]]]()  # the version under which each began
    for version in range(STEPS):
        missing = GROUPS
        while len(flying) < (max_lag + 1) * GROUPS:
            flying.append((version, asyncio.create_task(engines.group())))
        while missing:
            done = (i for i, (_, group) in enumerate(flying) if group.done())
            chosen = next((i for i in done if (i == 0 if fifo else in_time(flying, i, version, missing, max_lag))), None)
            if chosen is None:
                waiting = {group for _, group in (flying[:1] if fifo else flying) if not group.done()}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                continue
            assert version - flying.pop(chosen)[0] <= max_lag
            missing -= 1
        await asyncio.sleep(TRAINING)
    for _, group in flying:
        group.cancel()
    await asyncio.gather(*(group for _, group in flying), return_exceptions=True)
    return (now() - began) / STEPS / max(TRAINING, engines.busy / slots / STEPS)


def in_time(flying: list[tuple[int, asyncio.Task[None]]], chosen: int, version: int, missing: int, max_lag: int) -> bool:
    """With `chosen` taken now, is there room for every other group in the step by which it has to be taken?"""
    due = [began + max_lag for i, (began, _) in enumerate(flying) if i != chosen]
    return all(
        sum(d <= by for d in due) <= missing - 1 + (by - version) * GROUPS for by in range(version, version + max_lag + 1)
    )


def main() -> None:
    for slots in (512, 256, 128):
        for max_lag in (1, 2):
            fifo, first = (Jumping().run_until_complete(steps(slots, max_lag, kind)) for kind in (True, False))
            print(f"{slots} slots, max_lag {max_lag}: {fifo:.2f}, {first:.2f}")


if __name__ == "__main__":
    main()
