"""Every engine, spoken to as one: who is asked, who is given up, and what takes its place. Knows nothing of Ray.

An engine is disposable. When it dies, hangs or cannot go on it is killed, what it owes is asked again of the others, and
a new one takes its place, which answers nothing until it holds the newest weights. One that keeps failing is left out;
when too few are left the run ends, and says why.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from rlreason import pulse
from rlreason.config import RecoveryConfig
from rlreason.errors import Failure, Lost, RolloutError
from rlreason.loop import WeightSource
from rlreason.types import Group, Task

ATTEMPTS = 3  # broadcasts in a row that reach an engine in part only, after which it is replaced

Say = Callable[..., None]  # (event, text, details), as `Exams` and others tell what happens beside the steps
BACK_OFF = 2.0  # seconds before the second start in a row that is tried; it doubles from there on


class Process(pulse.Watched, Protocol):
    """What is asked of a process that is to be an engine, or a learner (`cluster.Worker`)."""

    def spawn(self) -> None: ...

    async def become(self, module: str, kind: str, *args: Any) -> None: ...

    async def call(self, method: str, *args: Any) -> Any: ...

    async def stacks(self) -> None: ...

    def kill(self) -> None: ...


Member = tuple[str, int]  # an engine's name, and which of the processes that have had its place
Received = float | None | Lost  # seconds; None: the broadcast was cut off; the engine is lost


@runtime_checkable
class Broadcaster(WeightSource, Protocol):
    """Learners that can send their weights by a collective which engines take part in."""

    broadcasts: bool  # do they? Else by a handle that any engine may read at any time

    async def broadcast(self, engines: Mapping[Member, Incarnation]) -> tuple[int, dict[Member, Received]]:
        """Send the weights to these engines alone. Returns their version and what became of each engine. Raises `Lost` if a
        learner is lost."""

    def fail(self, lost: Lost) -> None:
        """Report a loss of learners that was found in the background."""


@dataclass(frozen=True)
class Directory:
    """Weights that stay what they are: those of a Hugging Face directory."""

    path: Path

    async def publish(self) -> dict[str, str]:
        return {"kind": "file", "path": str(self.path.absolute())}


@dataclass(eq=False)
class Asked:
    """A task that waits for its answers."""

    task: Task
    samples: int
    answer: asyncio.Future[Group]
    times: int = 0  # that it was handed to an engine


@dataclass(eq=False)
class Engine:
    """One place in the fleet, and the process that has it now."""

    process: Process
    life: int = 0  # counts the processes that had this place
    up: bool = False  # the process is there, and can be given weights
    ready: bool = False  # it holds the newest weights, and is asked
    out: bool = False  # the place is given up
    falls: int = 0  # processes in a row of which nothing came
    fell: float = 0.0  # when the last one was lost, by the clock of the event loop; 0: its successor has answered
    rose: float = 0.0  # when that one was there, with the newest weights if there were any
    owed: dict[Asked, None] = field(default_factory=dict)  # in the order of asking
    watch: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class Incarnation:
    """One process of an engine. Once another has replaced it, `call` raises `Lost`."""

    engine: Engine
    number: int

    async def call(self, method: str, *args: Any) -> Any:
        if self.engine.life != self.number:  # its successor may not have started yet
            raise Lost(self.engine.process.name, "was replaced before it was called")
        return await self.engine.process.call(method, *args)


class Rollouts:
    """Each task goes to the engine that owes the fewest answers."""

    def __init__(
        self, processes: Sequence[Process], what: tuple[Any, ...], config: RecoveryConfig, share: Callable[[Any], Any],
        say: Say, shared: bool = False,
    ):  # fmt: skip
        """`what`: the arguments of `become` that make a process an engine. `share`: wraps what all are sent, so that it
        travels once. `shared`: the engines are on the learners' device."""
        self.engines = [Engine(process) for process in processes]
        self.what, self.config, self.share, self.say = what, config, share, say
        self.asked: list[Asked] = []  # and not handed to an engine yet
        self.dealing = False
        self.waves = itertools.count()
        self.newest: tuple[Any, int] | None = None  # handle (None: they are broadcast) and version
        self.broadcaster: Broadcaster | None = None  # of the newest weights
        self.transfer = asyncio.Lock()  # one broadcast at a time
        # Held by whoever needs the device for itself, where engines share one with learners.
        self.device: AbstractAsyncContextManager[Any] = asyncio.Lock() if shared else nullcontext()
        self.arrived = asyncio.Event()  # set, and replaced, when newer ones come
        self.stacks: Callable[[], Awaitable[None]] = self._stacks  # writes those of every process of the run
        self.broken: Exception | None = None  # why nothing will be answered any more
        self.closing = False
        self.work: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Start every engine; returns when each is up, or given up."""
        for engine in self.engines:
            self._do(self._bring_up(engine))
        while not self.broken and any(not engine.up and not engine.out for engine in self.engines):
            await asyncio.sleep(0.02)
        if self.broken:
            raise self.broken

    async def sample(self, task: Task, n: int) -> Group:
        """What is asked in one turn of the event loop reaches each engine as one wave (see `Rollout.sample`).

        When nothing is owed the deal depends on nothing but the order of asking, so on-policy runs repeat to the bit.
        """
        if self.broken:
            raise self.broken
        asked = Asked(task, n, asyncio.get_running_loop().create_future())
        self.asked.append(asked)
        self._deal_soon()
        return await asked.answer

    async def load(self, source: WeightSource, version: int) -> None:
        """Give the weights of `source` to every engine that is up; one that comes up later gets them then."""
        if not self.engines:
            return
        if isinstance(source, Broadcaster) and source.broadcasts:
            self.newest, self.broadcaster = (None, version), source
            up = [engine for engine in self.engines if engine.up]
            for engine in up:
                engine.ready = False
            await self._broadcast(source, up)
        else:
            self.broadcaster = None
            self.newest = self.share(await source.publish()), version
            self.arrived.set()
            self.arrived = asyncio.Event()
            await asyncio.gather(*(self._load(engine) for engine in self.engines if engine.up))
        if self.broken:
            raise self.broken

    async def sleep(self) -> None:
        """Make every engine give its memory back; what it is writing is lost."""
        await self._each("sleep")

    async def drain(self) -> None:
        """Wait until every task that was asked is answered."""
        while not self.broken and (self.asked or any(engine.owed for engine in self.engines)):
            await asyncio.sleep(0.005)

    async def forget(self) -> None:
        """Drop every answer that is being written: nobody waits for it any more."""
        self.asked = [asked for asked in self.asked if not asked.answer.done()]
        for engine in self.engines:
            engine.owed = {asked: None for asked in engine.owed if not asked.answer.done()}
        await self._each("forget")

    async def close(self) -> None:
        """End the engines in good order; whoever started their processes ends those."""
        await self._leave()
        await self._each("close")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leave()

    async def _leave(self) -> None:
        """From here on nothing is put in the place of an engine that is lost."""
        self.closing = True
        for task in self.work:
            task.cancel()
        await asyncio.gather(*self.work, return_exceptions=True)

    # ---- who is asked ----

    def _deal_soon(self) -> None:
        if not self.dealing:
            self.dealing = True
            asyncio.get_running_loop().call_soon(self._deal)

    def _deal(self) -> None:
        self.dealing = False
        ready = [engine for engine in self.engines if engine.ready]
        if not ready:  # the first that is will be dealt to
            return
        shares: dict[Engine, list[Asked]] = {engine: [] for engine in ready}
        heap = [(len(engine.owed), place) for place, engine in enumerate(ready)]  # the first of those that owe the fewest
        heapq.heapify(heap)
        for asked in self.asked:
            if not asked.answer.done():
                owed, place = heap[0]
                heapq.heapreplace(heap, (owed + 1, place))
                ready[place].owed[asked] = None
                shares[ready[place]].append(asked)
        self.asked = []
        number = next(self.waves)
        for engine, share in shares.items():
            if share:
                self._do(self._ask(engine, engine.life, share, number))

    async def _ask(self, engine: Engine, life: int, share: list[Asked], number: int) -> None:
        """Ask an engine for its share of a wave, and hand out the answers as they come."""
        if engine.life != life:  # lost since the wave was dealt, and its tasks are dealt again
            return
        left = dict(enumerate(share))
        for asked in share:
            asked.times += 1
        held = self.newest[1] if self.newest else 0
        ask: tuple[Any, ...] = ("answer", number, [(asked.task, asked.samples) for asked in share])
        while left:
            try:
                found = await engine.process.call(*ask)
                if any(group.samples and min(sample.version for sample in group.samples) < held for _, group in found):
                    raise Lost(engine.process.name, f"answers with other weights than v{held}, which it was given", True)
            except Lost as lost:
                self._lost(engine, life, lost)
                return
            except Exception as error:  # the asker's to deal with
                if engine.life == life:
                    for asked in left.values():
                        engine.owed.pop(asked, None)
                        if not asked.answer.done():
                            asked.answer.set_exception(error)
                return
            if engine.life != life:  # it was given up, and this is being asked again
                return
            for place, group in found:
                asked = left.pop(place)
                engine.owed.pop(asked, None)  # it may be forgotten
                if not asked.answer.done():
                    asked.answer.set_result(group)
            self._useful(engine)
            ask = ("more", number)

    def _useful(self, engine: Engine) -> None:
        """It has answered: what was wrong with the processes before it is over."""
        engine.falls = 0
        if engine.fell:
            name, up, answered = engine.process.name, engine.rose - engine.fell, now() - engine.fell
            engine.fell = 0.0
            self.say("engine", f"{name} was back after {up:.1f} s, and has answered after {answered:.1f} s", name=name,
                     what="back", up=round(up, 3), answered=round(answered, 3))  # fmt: skip

    # ---- who is given up, and what takes its place ----

    async def _bring_up(self, engine: Engine, delay: float = 0.0) -> None:
        """Start a process in this place, and give it the newest weights if there are any."""
        life, first = engine.life, not engine.life
        await asyncio.sleep(delay)
        try:
            try:
                async with self.device:
                    engine.process.spawn()
                    await asyncio.wait_for(engine.process.become(*self.what), self.config.start)
            except TimeoutError:
                await engine.process.stacks()
                why = f"was not ready {self.config.start:g} s after it was started (recovery.start)"
                raise Lost(engine.process.name, why, True) from None
            except Failure as failure:
                if first:  # what the recipe asks for cannot be had
                    raise
                raise Lost(engine.process.name, f"could not be started again: {failure}", True) from None
        except Lost as lost:
            self._lost(engine, life, lost)
            return
        engine.up = True
        engine.watch = self._do(self._watch(engine))
        if self.broadcaster:
            try:
                await self._broadcast(self.broadcaster, [engine])
            except Lost as lost:  # a learner: the run restarts them all, and they publish again
                self.broadcaster.fail(lost)
        elif self.newest:
            await self._load(engine)
        engine.rose = now()

    async def _broadcast(self, source: Broadcaster, engines: Sequence[Engine]) -> None:
        """Broadcast the newest weights to those of `engines` that need them, again where a member was lost meanwhile.

        Raises `Lost` if a learner is lost.
        """
        async with self.transfer:
            cut_off: Counter[Member] = Counter()
            while members := {(e.process.name, e.life): e for e in engines if e.up and not e.ready}:
                version, outcomes = await source.broadcast({member: Incarnation(e, e.life) for member, e in members.items()})
                if self.newest and version < self.newest[1]:
                    return  # of learners that were restarted just now: a load of what they hold follows
                for member, engine in members.items():
                    name, life = member
                    received = outcomes[member]
                    if received is None:
                        cut_off[member] += 1
                        if cut_off[member] == ATTEMPTS:
                            received = Lost(name, f"received only a part of the weights in {ATTEMPTS} broadcasts", True)
                    if isinstance(received, Lost):
                        self._lost(engine, life, received)
                    else:
                        engine.ready = received is not None and engine.life == life
        if self.asked and any(engine.ready for engine in engines):
            self._deal_soon()

    async def _load(self, engine: Engine) -> None:
        """Give one engine the newest weights, until those are what it holds."""
        life = engine.life
        engine.ready = engine.ready and self.newest is None
        while engine.life == life and not engine.ready and self.newest:
            (weights, version), arrived = self.newest, self.arrived
            try:
                there = await engine.process.call("load", weights, version)
            except Lost as lost:
                self._lost(engine, life, lost)
                return
            if self.newest[1] != version or self.newest[0] is not weights:
                continue
            if there is None:  # they were gone, or being replaced: others are on their way
                await arrived.wait()
                continue
            engine.ready = engine.life == life
        if engine.ready and self.asked:
            self._deal_soon()

    async def _stacks(self) -> None:
        await asyncio.gather(*(engine.process.stacks() for engine in self.engines if engine.up))

    async def _watch(self, engine: Engine) -> None:
        life = engine.life
        lost = await pulse.lost(engine.process, self.config.hung, lambda: engine.ready and bool(engine.owed), len(self.engines))
        if engine.life == life:
            if lost.alive:
                await self.stacks()
            self._lost(engine, life, lost)

    def _lost(self, engine: Engine, life: int, lost: Lost) -> None:
        """Kill what may be left of an engine, ask what it owes again, and put another in its place."""
        if engine.life != life or self.closing:  # that is known, or matters no more
            return
        engine.life, engine.falls, engine.fell = life + 1, engine.falls + 1, now()
        engine.up = engine.ready = False
        if engine.watch and engine.watch is not asyncio.current_task():
            engine.watch.cancel()
        engine.process.kill()
        again = [asked for asked in engine.owed if not asked.answer.done()]
        engine.owed = {}
        self.asked = again + self.asked
        name = engine.process.name
        self.say(
            "engine", f"{lost}\n{len(again)} tasks are asked again", name=name, what="lost", why=lost.why, again=len(again)
        )
        if fatal := [asked.task.id for asked in again if asked.times > self.config.restarts + 1]:
            self._break(RolloutError(f"{self.config.restarts + 2} engines in a row were lost while they answered "
                                     f"{', '.join(fatal[:4])}{' …' * (len(fatal) > 4)}; the last: {lost}"))  # fmt: skip
        if engine.falls > self.config.restarts:
            engine.out = True
            self.say("engine", f"{name} is left out: {engine.falls} starts in a row came to nothing", name=name, what="out")
            left = sum(not other.out for other in self.engines)
            if left < self.config.floor:
                self._break(RolloutError(f"{left} of {len(self.engines)} engines are left, and recovery.floor wants "
                                         f"{self.config.floor}; the last to go: {lost}"))  # fmt: skip
        else:
            self._do(self._bring_up(engine, BACK_OFF * 2 ** (engine.falls - 2) if engine.falls > 1 else 0.0))
        if self.asked:
            self._deal_soon()

    def _break(self, error: Exception) -> None:
        """Nothing will be answered any more: let everybody who waits know."""
        self.broken = self.broken or error
        for asked in [*self.asked, *(asked for engine in self.engines for asked in engine.owed)]:
            if not asked.answer.done():
                asked.answer.set_exception(error)

    async def _each(self, method: str) -> None:
        async def call(engine: Engine, life: int) -> None:
            try:
                await Incarnation(engine, life).call(method)
            except Lost as lost:
                self._lost(engine, life, lost)

        await asyncio.gather(*(call(engine, engine.life) for engine in self.engines if engine.up))

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """In the background; what fails there without being foreseen ends the run."""
        task = asyncio.create_task(work)
        self.work.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self.work.discard(task)
        if not task.cancelled() and (error := task.exception()) and isinstance(error, Exception):
            self._break(error)


def now() -> float:
    """Seconds, by the clock of the event loop."""
    return asyncio.get_running_loop().time()
