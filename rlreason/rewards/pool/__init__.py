"""Processes that judge answers, and that are killed when they do not. Knows nothing of engines; asyncio on this side."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from rlreason.errors import RolloutError
from rlreason.pulse import beat
from rlreason.rewards import weigh
from rlreason.rewards.pool.process import PATIENCE, Asked, Process
from rlreason.types import Task

if TYPE_CHECKING:
    from rlreason.config import RewardsConfig

STILLBORN = 3  # processes in a row that end before they are ready, until the pool gives up
AWAY = 300.0  # seconds that an answer waits for a service that is not there, such as a remote sandbox
PAUSE, LONGEST = 1.0, 30.0  # seconds before it is asked the second time, and at most, doubling in between
AUDIT = 64  # every so many answers one is judged a second time


class Verdict(NamedTuple):
    """What an answer earned: the weighted sum, its parts by reward, and how those failed that did (a subset of them)."""

    reward: float | None
    parts: dict[str, float | None]
    failures: dict[str, str]


class Pool:
    """`async with Pool(config.rewards, names) as pool: await pool.judge(task, text, weights)`, any number at a time.

    The processes start at once, and import the rewards of these names; others are imported when an answer needs them.
    """

    def __init__(self, config: RewardsConfig, names: Iterable[str] = (), log: Path | None = None, away: float = AWAY):
        """`log`: where the processes print; without one, to this process's standard error. `away`: seconds that an answer
        waits for a reward that raises `ConnectionRefusedError`."""
        self.setup = {"names": list(names), "options": config.options, "timeout": config.timeout, "memory": config.memory}
        limits = [config.timeout, *(options["timeout"] for options in config.options.values() if "timeout" in options)]
        self.period = min(1.0, min(limits) / 4)  # seconds from one look at the clock to the next
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else 2
        self.workers = [Process(self.setup, self.log) for _ in range(config.workers)]
        self.queue: deque[Asked] = deque()
        self.numbers, self.judged, self.away = itertools.count(), itertools.count(1), away
        self.heard: dict[str, float] = {}  # reward -> when it last judged an answer
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
        None because it cannot judge, and `failures` says how. So does one that gives an answer two different numbers,
        which every 64th answer is an occasion to find out. One that raises `ConnectionRefusedError`, as its
        service is away, is asked again after 1 s, 2 s, 4 s, … and whoever waits for the verdict waits: an outage costs
        time, and no answer.

        Raises `RolloutError` if no process can be started, or such a service does not come back.
        """
        weights = task.reward or weights
        facts = {"length": length, "limit": limit, "truncated": truncated}
        try:
            body = json.dumps([[getattr(task, f.name) for f in fields(task)], text, facts])[1:-1]
        except (TypeError, ValueError, RecursionError) as error:
            cause = f"could not be asked: the task's info is not JSON: {error}"
            parts = dict.fromkeys(weights)
            return Verdict(weigh(weights, parts), parts, dict.fromkeys(weights, cause))
        asked = await self._patiently(body, [*weights])
        if next(self.judged) % AUDIT == 0:
            await self._audit(body, asked)
        parts = {name: asked.parts[name] for name in weights}
        return Verdict(weigh(weights, parts), parts, asked.failures)

    async def _patiently(self, body: str, names: list[str]) -> Asked:
        """Ask; where a service is away, wait and ask that reward again. If it then is there for others, the answer fails:
        it may be what brings the service down."""
        asked = await self._ask(body, names)
        begun, pause = time.monotonic(), PAUSE
        while asked.away:
            if time.monotonic() + pause > begun + self.away:
                for name, cause in asked.away.items():
                    if self.heard.get(name, 0.0) < begun:
                        raise RolloutError(f"the reward {name} could not be asked for {self.away:g} s: {cause}. Bring its "
                                           "service up again; the same command goes on from the last checkpoint")  # fmt: skip
                    asked.part(name, None, cause)
                break
            beat(f"waiting for the service of the reward {next(iter(asked.away))}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST)
            again = await self._ask(body, [*asked.away])
            asked.parts |= again.parts
            asked.failures |= again.failures
            asked.away = again.away
        return asked

    async def _audit(self, body: str, asked: Asked) -> None:
        """Ask a second time, another process if one is free: a number that is then another one is worth nothing. Services,
        which cost money, are left out."""
        first = {name: part for name, part in asked.parts.items() if part is not None and name not in asked.waited}
        second = (await self._ask(body, [*first], asked.by)).parts
        for name, a in first.items():
            b = second.get(name)
            if b is not None and not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9):
                asked.part(name, None, f"is not deterministic: it gave {a:g} and then {b:g} for the same answer")

    async def _ask(self, body: str, names: list[str], other: Process | None = None) -> Asked:
        """One answer, judged by the rewards of these names, as far as they can; by another process than `other`."""
        if self.broken:
            raise RolloutError(self.broken)
        loop = asyncio.get_running_loop()
        if not self.listening:  # an engine may be made before its loop runs
            self.listening = True
            for worker in self.workers:
                loop.add_reader(worker.socket, self._heard, worker)
        asked = Asked(next(self.numbers), body, names, loop.create_future(), other=other)
        if names:
            self.queue.append(asked)
            self._deal()
            await asked.done
        now = time.monotonic()
        self.heard |= {name: now for name in asked.parts if name not in asked.failures}
        return asked

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
            asked = self.queue.popleft()
            min(free, key=lambda worker: (worker is asked.other, len(worker.asked))).ask(asked)
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
