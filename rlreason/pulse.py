"""Signs of life: what a process is doing, and how to tell that nothing comes of it. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rlreason.errors import Lost

A_SECOND = 25  # pulses that are asked for: one costs 0.3 ms
STACKS = signal.SIGUSR2  # a process that gets it writes where each of its threads stands into its log


@dataclass(frozen=True)
class Pulse:
    """What a process says of itself."""

    pid: int
    node: str = ""  # its address, as Ray knows it
    beats: int = 0  # how often something has come of its work
    doing: str = "starting"
    open: int = 0  # calls that it has not answered yet
    resident: int = 0  # bytes

    @property
    def told(self) -> str:
        return f"process {self.pid}, {self.doing}, {self.resident / 2**30:.1f} GiB"


_now = Pulse(os.getpid())


def beat(doing: str) -> None:
    """Something has come of this process's work: a micro-batch, a step of the engine, a judged answer."""
    global _now
    _now = replace(_now, beats=_now.beats + 1, doing=doing)


def feel(node: str, calls: int) -> Pulse:
    """This process's pulse, on `node`; `calls` of it are not answered yet."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return replace(_now, pid=os.getpid(), node=node, open=calls, resident=resident)


def oom_kills(root: Path = Path("/")) -> int:
    """How often the kernel has killed a process for want of memory, by the counters that can be seen from here: those of
    the machine and of this process's cgroup, of version 2 or 1. What a kill adds may be 1 or 2; only that it grows counts."""
    files = [root / "proc/vmstat"]
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else []:
        number, kinds, path = line.split(":", 2)
        if number == "0":
            files.append(root / "sys/fs/cgroup" / path.lstrip("/") / "memory.events")
        elif "memory" in kinds.split(","):
            files.append(root / "sys/fs/cgroup/memory" / path.lstrip("/") / "memory.oom_control")
    lines = [line.split() for file in files if file.exists() for line in file.read_text().splitlines()]
    return sum(int(number) for name, number, *_ in lines if name == "oom_kill")


def listen() -> None:
    """From now on a fatal signal, and `STACKS`, make this process write all its stacks to standard error."""
    faulthandler.enable(sys.__stderr__ or 2)
    faulthandler.register(STACKS, file=sys.__stderr__ or 2, all_threads=True)


def write_stacks(log: Path) -> None:
    """This process's own, of every thread."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        faulthandler.dump_traceback(file)


@contextmanager
def watchdog(limit: float, doing: str, log: Path | None = None) -> Iterator[Callable[[], None]]:
    """End this process if what is yielded is not called for `limit` seconds: then it is stuck where nothing else would
    notice. Its stacks go to `log`, or to standard error; what was committed is kept."""
    last, over = [time.monotonic()], threading.Event()

    def look() -> None:
        while not over.wait(min(1.0, limit / 4)):
            if time.monotonic() - last[0] > limit:
                with log.open("a") if log else contextlib.nullcontext(sys.stderr) as file:
                    faulthandler.dump_traceback(file)
                told = f"; its stacks are in {log}" if log else ""
                print(f"rlreason: this process has stood still for {limit:g} s ({doing}){told}", file=sys.stderr)
                print("what was committed is kept, and the same command goes on from it", file=sys.stderr, flush=True)
                os._exit(1)  # whoever is stuck will not hear anything milder

    def alive() -> None:
        last[0] = time.monotonic()

    threading.Thread(target=look, daemon=True).start()
    try:
        yield alive
    finally:
        over.set()


@asynccontextmanager
async def ticking(limit: float, log: Path) -> AsyncIterator[None]:
    """A watchdog on the event loop of this process."""

    async def tick() -> None:
        while True:
            alive()
            await asyncio.sleep(min(1.0, limit / 4))

    with watchdog(limit, "its event loop", log) as alive:
        ticks = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticks.cancel()


class Watched(Protocol):
    """A process that can be asked how it is."""

    name: str

    async def pulse(self, within: float) -> Pulse: ...


async def lost(process: Watched, hung: float, owes: Callable[[], bool], among: int = 1) -> Lost:
    """Watch a process until it is lost, and return how: it died, it does not say anything for `hung` seconds, or
    nothing comes of what it has to do for as long. `owes`: is an answer of it waited for? `among`: how many are watched, of
    whom so many a second are asked at most, however many there are."""
    clock = asyncio.get_running_loop().time
    beats, since, period = -1, clock(), min(max(2.0, among / A_SECOND), hung / 10)
    while True:
        await asyncio.sleep(period)
        try:
            pulse = await process.pulse(hung)
        except Lost as gone:
            return gone
        idle = not pulse.open and not owes()
        if pulse.beats != beats or idle:
            beats, since = pulse.beats, clock()
        elif clock() - since > hung:
            return Lost(process.name, f"has made no progress for {hung:g} s ({pulse.told}); its stacks are in its log", True)
