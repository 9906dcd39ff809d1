"""Every learner process, spoken to as one: they live together, and when one is lost all are put together again.

Knows nothing of Ray. Ranks of one group wait for each other in every step, so one that dies or hangs takes the others
with it; `begin` makes a new group of them, which goes on from a checkpoint (`training.run`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from rlreason import checkpoint, pulse, space
from rlreason.config import Config
from rlreason.errors import Failure, Lost, StorageError
from rlreason.fleet import Incarnation, Member, Process, Received, Rollouts, Say
from rlreason.placement import parallel_size
from rlreason.types import Group, Metrics

AFTERMATH = 2.0  # seconds in which the loss of a rank is heard of, after another has failed for want of it
SLOW = 20e6  # bytes a second that the slowest storage reads
STRAGGLES = 2.0  # times as long as the others that a rank takes when it is told, …
IN_A_ROW = 5  # … after so many steps


Meeting = Callable[[], Awaitable[None]]


class Rank(Process, Protocol):
    async def address(self) -> tuple[str, int]: ...

    async def interrupt(self) -> None:
        """Call the learner's `interrupt`, also while it is busy. A rank that is lost is not told."""


class Straggling:
    """Which rank keeps the others waiting: each is as slow as the slowest."""

    def __init__(self) -> None:
        self.slowest = ""
        self.row = 0  # steps in which it was, by more than `STRAGGLES`

    def look(self, alone: Mapping[str, float]) -> float:
        """By how much the slowest rank is slower than the median of the others; `alone`: seconds of each, in this step."""
        slowest = max(alone, key=lambda name: alone[name])
        times = alone[slowest] / max(median(alone[name] for name in alone if name != slowest), 1e-9)
        self.row = 0 if times <= STRAGGLES else self.row + 1 if slowest == self.slowest else 1
        self.slowest = slowest
        return times


class Learners:
    """`version` counts the steps, as every rank does."""

    def __init__(
        self, config: Config, ranks: Sequence[Rank], about: tuple[Any, ...], share: Callable[[Any], Any], say: Say,
        broadcasts: bool = False,
    ):  # fmt: skip
        """`about`: what a rank is made of, besides its number and where they meet. `share`: wraps what all ranks are
        sent, so that it travels once. `broadcasts`: the transport of weights is a collective with the engines."""
        self.config, self.ranks, self.about, self.share, self.say = config, ranks, about, share, say
        self.broadcasts = broadcasts
        self.host = ""  # rank 0's address
        self.members: tuple[Member, ...] = ()  # of the group over which weights are broadcast
        self.stepping = asyncio.Lock()  # weights change and are broadcast under it, so neither does during the other
        self.version = self.diverged = 0
        self.straggling = Straggling()
        self.gone: Lost | None = None  # a rank that was lost, also while nothing is asked of it
        self.watches: list[asyncio.Task[None]] = []
        self.stacks: Meeting = self._stacks  # writes those of every process of the run, where more than these are known

    async def begin(self) -> None:
        """Start every rank, in place of those that there may be. Raises `Failure` if that cannot be done."""
        for tried in itertools.count(1):
            try:
                self.end()  # a broadcast to an engine that came back fails now, and lets go of the lock
                async with self.stepping:
                    await self._begin()
                return
            except Lost as lost:
                self.end()
                if tried > self.config.recovery.retries:
                    raise Failure(f"the learners could not be started {tried} times in a row; the last time: {lost}") from None
                self.say("learners", f"{lost}\nthe learners are started again", what="lost", name=lost.name, why=lost.why)

    async def _begin(self) -> None:
        self.end()
        self.version = self.diverged = 0
        self.members = ()
        self.straggling = Straggling()
        for rank in self.ranks:
            rank.spawn()
        if not self.ranks:
            return
        try:
            await asyncio.wait_for(self._become(), self.config.recovery.start)
        except TimeoutError:
            await self.stacks()
            why = f"were not ready {self.config.recovery.start:g} s after they were started (recovery.start)"
            raise Lost("the learners", why, True) from None
        self.watches = [asyncio.create_task(self._watch(rank)) for rank in self.ranks]

    async def _become(self) -> None:
        self.host, port = await self.ranks[0].address()
        await asyncio.gather(
            *(
                rank.become("rlreason.learner", "Learner", number, *self.about, f"{self.host}:{port}")
                for number, rank in enumerate(self.ranks)
            )
        )

    def end(self) -> None:
        """Kill every rank that there is."""
        self.rest()
        for rank in self.ranks:
            rank.kill()

    def rest(self) -> None:
        """Watch the ranks no more: they are about to be ended."""
        for watch in self.watches:
            watch.cancel()
        self.watches, self.gone = [], None

    async def _watch(self, rank: Rank) -> None:
        """Engines may wait for weights that die with a learner, and the loop for the engines: somebody has to look."""
        self.gone = await pulse.lost(rank, self.config.recovery.hung, lambda: False, len(self.ranks))

    async def step(self, groups: list[Group]) -> Metrics:
        """One step of all ranks. Raises `Failure` when too many in a row came to NaN or infinity, and were skipped."""
        async with self.stepping:
            told: list[Metrics] = await self._all("step", self.share(groups))
            self.version += 1
        alone = {rank.name: metrics.pop("alone") for rank, metrics in zip(self.ranks, told, strict=True) if "alone" in metrics}
        metrics = told[0] | (self._straggle(alone) if len(alone) > 1 else {})
        self.diverged = self.diverged + 1 if metrics.get("diverged") else 0
        if self.diverged >= self.config.recovery.diverged:
            raise Failure(
                f"the last {self.diverged} steps came to NaN or infinity and were skipped (recovery.diverged); their batches "
                f"are in {Path(self.config.out) / 'diverged'}. A smaller learner.lr may help, or a look at them."
            )
        return metrics

    def _straggle(self, alone: Mapping[str, float]) -> Metrics:
        times = self.straggling.look(alone)
        if self.straggling.row == IN_A_ROW:
            name = self.straggling.slowest
            self.say("straggler", f"{name} took over {STRAGGLES:g} times as long as the other learners in {IN_A_ROW} steps in "
                     f"a row ({times:.1f} times in the last), and they wait for it: look at its machine, and at what else "
                     "runs there", name=name, times=round(times, 2), step=self.version)  # fmt: skip
        return {"time/straggle": times}

    async def publish(self) -> Any:
        return (await self._all("publish"))[0]

    async def broadcast(self, engines: Mapping[Member, Incarnation]) -> tuple[int, dict[Member, Received]]:
        """Send the weights to these engines, over a group of rank 0 and all their workers that is formed anew when its
        members change. Returns the version of the weights, and what became of each engine.

        A member that is lost cuts the broadcast off: the others give up within a second and leave the group.
        """
        async with self.stepping:
            version = self.version
            if self.members != tuple(engines):
                self.members = ()
                outcomes = await self._connect(engines)
                if any(one is not True for one in outcomes.values()):
                    return version, {m: one if isinstance(one, Lost) else None for m, one in outcomes.items()}
                self.members = tuple(engines)
            handle = self.share(await self.publish())
            outcomes = await self._together(
                self._all("send"), {m: engine.call("load", handle, version) for m, engine in engines.items()}
            )
            if any(one is None or isinstance(one, Lost) for one in outcomes.values()):
                self.members = ()
            return version, outcomes

    async def _connect(self, engines: Mapping[Member, Incarnation]) -> dict[Member, Any]:
        """Form the group. Returns by engine whether it came about, or how the engine was lost."""
        width = parallel_size(self.config.rollout.vllm)
        world = 1 + width * len(engines)
        # A member whose fellow is stopped is released when that is found out: by its heartbeat, before this time is over.
        timeout = 2 * self.config.recovery.hung
        first = self.ranks[:1]
        port = (await self._all("open_group", self.host, world, timeout, ranks=first))[0]
        return await self._together(
            self._all("connect_group", ranks=first),
            {member: engine.call("join", self.host, port, 1 + i * width, world, timeout)
             for i, (member, engine) in enumerate(engines.items())},
        )  # fmt: skip

    async def _together(
        self, ours: Awaitable[list[bool]], theirs: Mapping[Member, Awaitable[Any]]
    ) -> dict[Member, Any]:  # fmt: skip
        """A collective of the learners and of engines: what each engine answers, or how it was lost; None or False where it
        was cut off. Raises what the learners raise, or an engine that is not lost."""
        own = asyncio.ensure_future(ours)
        calls = {member: asyncio.ensure_future(call) for member, call in theirs.items()}
        waiting: set[asyncio.Future[Any]] = {own, *calls.values()}
        whole = True
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if own in done:
                    own.result()  # a learner that is lost ends this at once: its engines find out by its store
                if whole and any(one.exception() or one.result() in (None, False) for one in done - {own}):
                    whole = False
                    await self.ranks[0].interrupt()
            return {member: _received(call) for member, call in calls.items()}
        finally:
            if waiting:
                await self.ranks[0].interrupt()
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def fail(self, lost: Lost) -> None:
        self.gone = self.gone or lost

    async def save(self, cursor: int, pending: Sequence[str] = ()) -> None:
        """Commit a checkpoint, and write the weights as a Hugging Face directory beside it. `pending`: ids of the tasks
        that are being answered."""
        out = Path(self.config.out)
        folder = out / "checkpoints" / f"v{self.version}"
        stage = (self.config.learner.deepspeed.get("zero_optimization") or {}).get("stage", 0)
        state = {"version": self.version, "cursor": cursor, "pending": list(pending), "ranks": len(self.ranks), "stage": stage}
        try:
            if folder not in checkpoint.committed(folder.parent):  # it is, if only pointing at it has failed
                space.another(out)
                checkpoint.begin(folder)
                await self._all("save", str(folder.absolute()), state)
                await self._all("export", str((out / "weights" / f"v{self.version}").absolute()))
                await self._commit(folder, state)
            checkpoint.point(out / "weights" / "last", f"v{self.version}")
        finally:  # what could not be written whole takes the room that is missing
            for left in [*checkpoint.prune(folder.parent, self.config.loop.keep),
                         *checkpoint.prune_weights(out / "weights", folder.parent)]:  # fmt: skip
                self.say("kept", f"could not be removed, and takes room: {left}", what=left)

    async def _commit(self, folder: Path, state: dict[str, Any]) -> None:
        """On a thread, for it reads and hashes every file. Raises `StorageError` if the storage stands still."""
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        limit = self.config.recovery.hung + size / SLOW
        try:
            beside = [Path(self.config.out) / "weights" / folder.name]
            await asyncio.wait_for(asyncio.to_thread(checkpoint.commit, folder, state, beside), limit)
        except TimeoutError:
            raise StorageError(f"{folder}: {size / 1e9:.1f} GB were not read and hashed within {limit:.0f} s; is the storage "
                               "gone, or very slow? (recovery.hung)") from None  # fmt: skip

    async def digest(self) -> str:
        """`manifest.weights` of what the learners hold."""
        return str((await self._all("digest"))[0])

    async def restore(self, folder: Path) -> dict[str, Any]:
        """Go back to a checkpoint; returns its state."""
        async with self.stepping:
            states = await self._all("restore", str(folder.absolute()))
            self.version = states[0]["version"]
        return dict(states[0])

    async def _all(self, method: str, *args: Any, ranks: Sequence[Rank] | None = None) -> list[Any]:
        """The answer of every rank, or of `ranks`. Raises `Lost`, with the rank that is to blame, if one dies or hangs."""
        ranks = self.ranks if ranks is None else ranks
        calls = [asyncio.ensure_future(rank.call(method, *args)) for rank in ranks]
        whole = asyncio.gather(*calls)
        watches = [
            asyncio.ensure_future(pulse.lost(rank, self.config.recovery.hung, lambda call=call: not call.done()))  # type: ignore[misc]
            for rank, call in zip(ranks, calls, strict=True)
        ]
        try:
            waiting: list[asyncio.Future[Any]] = [whole, *watches]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if whole.done():
                first = whole.exception()
                if isinstance(first, Failure) or (isinstance(first, Lost) and first.alive):  # because another one is gone?
                    await asyncio.wait(calls, timeout=AFTERMATH)
                    lost = [error for call in calls if call.done() and isinstance(error := call.exception(), Lost)]
                    if lost:
                        raise min(lost, key=lambda error: error.alive)
                return await whole
            raise await self._blame(next(watch.result() for watch in watches if watch.done()))
        finally:
            for task in (*watches, *calls):
                task.cancel()
            await asyncio.gather(*watches, *calls, whole, return_exceptions=True)

    async def _blame(self, lost: Lost) -> Lost:
        """Which rank it is that the others wait for: the one that says nothing, or has got the least far."""
        if not lost.alive:
            return lost
        await self.stacks()
        pulses: dict[str, pulse.Pulse] = {}
        for rank in self.ranks:
            try:
                pulses[rank.name] = await rank.pulse(AFTERMATH)
            except Lost as silent:
                return silent if not silent.alive else Lost(rank.name, f"is stopped or blocked: {silent.why}", True)
        last = min(pulses, key=lambda name: pulses[name].beats)
        about = ", ".join(f"{name}: {answer.doing}" for name, answer in pulses.items())
        return Lost(last, f"has made no progress for {self.config.recovery.hung:g} s ({about}); "
                                           "the stacks of all are in their logs", True)  # fmt: skip

    async def _stacks(self) -> None:
        await asyncio.gather(*(rank.stacks() for rank in self.ranks))


class TakingTurns(Learners):
    """Learners on the device of the engines, which sleep while they start and step, and wake when they get their weights."""

    def __init__(
        self, config: Config, ranks: Sequence[Rank], about: tuple[Any, ...], share: Callable[[Any], Any], say: Say,
        rollouts: Rollouts, broadcasts: bool = False,
    ):  # fmt: skip
        super().__init__(config, ranks, about, share, say, broadcasts)
        self.rollouts = rollouts

    async def begin(self) -> None:
        async with self.rollouts.device:
            await self.rollouts.sleep()
            await super().begin()

    async def step(self, groups: list[Group]) -> Metrics:
        await self.rollouts.drain()  # an evaluation that goes on beside training
        async with self.rollouts.device:
            await self.rollouts.sleep()
            metrics = await super().step(groups)
            await self._all("release_memory")
            return metrics

    async def publish(self) -> Any:
        """Publish, and leave no cached memory to the learners: the engines that load wake up now."""
        handle = await super().publish()
        await self._all("release_memory")
        return handle


def _received(call: asyncio.Future[Any]) -> Any:
    """An engine's answer, or how it was lost."""
    try:
        return call.result()
    except Lost as lost:
        return lost
