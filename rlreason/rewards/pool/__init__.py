"""Processes that judge answers, and that are killed when they do not. Knows nothing of engines; asyncio on this side."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from rlreason.errors import RolloutError
from rlreason.rewards import weigh
from rlreason.rewards.pool.process import PATIENCE, Asked, Process
from rlreason.types import Task

if TYPE_CHECKING:
    from rlreason.config import RewardsConfig

STILLBORN = 3  # processes in a row that end before they are ready, until the pool gives up


class Verdict(NamedTuple):
    """What an answer earned: the weighted sum, its parts by reward, and how those failed that did (a subset of them)."""

    reward: float | None
    parts: dict[str, float | None]
    failures: dict[str, str]


class Pool:
    """`async with Pool(config.rewards, names) as pool: await pool.judge(task, text, weights)`, any number at a time.

    The processes start at once, and import the rewards of these names; others are imported when an answer needs them.
    """

    def __init__(self, config: RewardsConfig, names: Iterable[str] = (), log: Path | None = None):
        """`log`: where the processes print; without one, to this process's standard error."""
        self.setup = {"names": list(names), "options": config.options, "timeout": config.timeout, "memory": config.memory}
        limits = [config.timeout, *(options["timeout"] for options in config.options.values() if "timeout" in options)]
        self.period = min(1.0, min(limits) / 4)  # seconds from one look at the clock to the next
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else 2
        self.workers = [Process(self.setup, self.log) for _ in range(config.workers)]
        self.queue: deque[Asked] = deque()
        self.numbers = itertools.count()
        self.stillborn = 0  # processes in a row that ended before they were ready
        self.broken = ""  # why nothing can be judged any more
        self.listening = False
        self.clock: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def judge(
        self, task: Task, text: str, weights: Mapping[str, float], *, length: int = 0, limit: int = 0, truncated: bool = False
    ) -> Verdict:
        """The reward of an answer; `task.reward`, where the task has one, takes the place of `weights`.

        A reward that raises, hangs, dies or gives no finite number fails alone: its part is None, as where a reward gives
        None because it cannot judge, and `failures` says how. Raises `RolloutError` if no process can be started.
        """
        weights = task.reward or weights
        facts = {"length": length, "limit": limit, "truncated": truncated}
        try:
            body = json.dumps([[getattr(task, f.name) for f in fields(task)], text, facts])[1:-1]
        except (TypeError, ValueError, RecursionError) as error:
            cause = f"could not be asked: the task's info is not JSON: {error}"
            parts = dict.fromkeys(weights)
            return Verdict(weigh(weights, parts), parts, dict.fromkeys(weights, cause))
        if self.broken:
            raise RolloutError(self.broken)
        loop = asyncio.get_running_loop()
        if not self.listening:  # an engine may be made before its loop runs
            self.listening = True
            for worker in self.workers:
                loop.add_reader(worker.socket, self._heard, worker)
        asked = Asked(next(self.numbers), body, [*weights], loop.create_future())
        if weights:
            self.queue.append(asked)
            self._deal()
            await asked.done
        parts = {name: asked.parts[name] for name in weights}
        return Verdict(weigh(weights, parts), parts, asked.failures)

    async def close(self) -> None:
        """End every process, and all that they have started."""
        if self.clock:
            self.clock.cancel()
        for worker in self.workers:
            for asked in worker.asked.values():
                asked.done.cancel()
            worker.leave()  # one that has nothing to do ends by itself now
            if worker.asked:
                worker.process.terminate()
        begun = time.monotonic()
        while any(worker.process.poll() is None for worker in self.workers):
            await asyncio.sleep(0.005)
            for worker in self.workers:
                if time.monotonic() > begun + 2 * PATIENCE:
                    worker.process.kill()
                elif time.monotonic() > begun + 1:
                    worker.process.terminate()
        for worker in self.workers:
            if worker.process.returncode < 0:
                worker.bury()
        for asked in self.queue:
            asked.done.cancel()
        if self.log != 2:
            os.close(self.log)
            self.log = 2

    def _deal(self) -> None:
        """Hand out what waits to whoever has the least to do."""
        while self.queue:
            if self.queue[0].done.done():  # cancelled
                self.queue.popleft()
                continue
            free = [worker for worker in self.workers if worker.free(self.queue[0].alone)]
            if not free:
                break
            min(free, key=lambda worker: len(worker.asked)).ask(self.queue.popleft())
        for worker in self.workers:
            if worker.unsent:
                self._send(worker)
        if self.clock is None and (self.queue or any(worker.asked for worker in self.workers)):
            self.clock = asyncio.get_running_loop().call_later(self.period, self._tick)

    def _send(self, worker: Process) -> None:
        loop = asyncio.get_running_loop()
        if worker.send():
            loop.add_writer(worker.socket, self._send, worker)
        else:
            loop.remove_writer(worker.socket)

    def _heard(self, worker: Process) -> None:
        if not worker.read():
            self._replace(worker)
        self._deal()

    def _tick(self) -> None:
        """Look after what takes too long, as long as anything is asked."""
        assert self.clock
        idle = asyncio.get_running_loop().time() - self.clock.when()  # what this process was busy with counts for nobody
        self.clock = None
        for worker in [*self.workers]:
            worker.since += max(0.0, idle)
            if time.monotonic() > worker.killed + PATIENCE:  # its guard is in trouble too
                worker.process.kill()
                self._replace(worker)
            elif not worker.blamed and not worker.read():  # what it has said meanwhile counts
                self._replace(worker)
            elif not worker.blamed:
                worker.look()
        self._deal()

    def _replace(self, worker: Process) -> None:
        """Start another process in place of one that has ended, and see to what that one left undone."""
        worker.leave()
        cause = worker.died()
        self.stillborn = 0 if worker.ready else self.stillborn + 1
        if worker.ready and not worker.leaving:
            settle(worker.under_way(), worker.likely or [*worker.line][:1], cause)
        for asked in reversed(worker.asked.values()):
            asked.left = [*asked.waiting, *asked.left]
            asked.waiting.clear()
            if asked.left:
                self.queue.appendleft(asked)
            else:
                asked.end()
        if self.stillborn < STILLBORN:
            new = self.workers[self.workers.index(worker)] = Process(self.setup, self.log)
            asyncio.get_running_loop().add_reader(new.socket, self._heard, new)
            return
        self.workers.remove(worker)
        self.broken = f"no process that judges answers comes up: the last {STILLBORN} {cause} before they were ready; what " \
                      "they said is where this process prints, or in its log"  # fmt: skip
        for asked in [*self.queue, *(asked for worker in self.workers for asked in worker.asked.values())]:
            if not asked.done.done():
                asked.done.set_exception(RolloutError(self.broken))
        self.queue.clear()


def settle(under_way: list[tuple[Asked, str]], likely: list[Asked], cause: str) -> None:
    """Find out what killed a process, of what was under way in it.

    If that was one answer only, its reward at work has failed; else a coroutine of it. Of several nobody knows which it
    was: the likely ones are asked again alone, the others when it happens to them a second time.
    """
    if len({asked.number for asked, _ in under_way}) == 1:
        at_work = [(asked, name) for asked, name in under_way if name in asked.left]
        for asked, name in at_work or under_way:
            asked.part(name, None, cause)
            asked.waiting.pop(name, None)
            asked.left = [left for left in asked.left if left != name]
        return
    for asked in {asked.number: asked for asked, _ in under_way}.values():
        asked.deaths += 1
        asked.alone = asked.alone or asked in likely or not likely or asked.deaths > 1
