"""One process of a run, on Ray: the host inside it, and the worker that the driver speaks to."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import inspect
import math
import os
import re
import signal
import socket
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.util import get_node_ip_address

from rlreason import nodes, pulse
from rlreason.errors import Failure, Lost, StorageError, Wounded
from rlreason.pulse import Pulse

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE}  # a storage's troubles
# What a rank raises when another one is gone, or the network between them: torch's own errors, and gloo's words.
CUT_OFF = {"DistBackendError", "DistNetworkError", "DistStoreError"}
GLOO = ("Connection closed by peer", "Connection reset by peer", "gloo/transport")
WORDS = 65536  # bytes of a log in which the cause of a death is looked for: the stacks of all threads come after it
INTERRUPT = 2.0  # seconds in which a process that is not stopped has been interrupted
FATAL = re.compile(r"Fatal Python error: ([^\n]*)")
CURRENT = re.compile(r"Current thread [^\n]*\n +File \"([^\"\n]*)\", line (\d+) in (\S+)")  # innermost frame
GONE = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)  # a process is, says Ray


class Host:
    """One process. It becomes a Learner or a Rollout, which it alone imports: the driver stays light.

    `pulse` and `signal` are answered on a thread of their own, so also while the process is busy.
    """

    def __init__(self, name: str, out: str):
        """What the process prints goes to a file of the run, and not through the driver's terminal."""
        path = log_of(name, out)
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for variable, value in nodes.network(get_node_ip_address()).items():
            os.environ.setdefault(variable, value)  # loopback is set where there is one node; the user's choice wins
        pulse.listen()
        self.it: Any = None
        self.calls = 0  # that are not answered yet

    async def become(self, module: str, kind: str, *args: Any) -> None:
        """Modules are never garbage: with collections that do not look at them, an engine starts in two thirds of the time."""
        gc.disable()
        made = getattr(importlib.import_module(module), kind)
        gc.freeze()
        self.it = made(*args)
        gc.collect()  # else what the constructor left behind would be kept for good, device memory included
        gc.freeze()
        gc.enable()
        pulse.beat("ready")

    async def call(self, method: str, *args: Any) -> Any:
        self.calls += 1
        try:
            pulse.beat(method)
            result = getattr(self.it, method)(*args)
            return await result if inspect.isawaitable(result) else result
        finally:
            self.calls -= 1
            pulse.beat(f"done with {method}")

    async def address(self) -> tuple[str, int]:
        """This node, and a port of it that is free now."""
        with socket.socket() as s:
            s.bind(("", 0))
            return get_node_ip_address(), s.getsockname()[1]

    @ray.method(concurrency_group="life")  # type: ignore[untyped-decorator]
    async def pulse(self) -> pulse.Pulse:
        return pulse.feel(get_node_ip_address(), self.calls)

    @ray.method(concurrency_group="life")  # type: ignore[untyped-decorator]
    async def interrupt(self) -> None:
        if self.it is not None:
            self.it.interrupt()

    @ray.method(concurrency_group="life")  # type: ignore[untyped-decorator]
    async def signal(self, number: int) -> None:
        os.kill(os.getpid(), number)


class Worker:
    """A Host, seen from the driver: `await worker.call("step", groups)`, with failures that say what happened.

    Raises `Lost` if the process is, and `failure` if what was called raised something.
    """

    def __init__(self, name: str, out: str, failure: type[Failure], **options: Any):
        self.name, self.out, self.log, self.failure, self.options = name, out, log_of(name, out), failure, options
        self.actor: Any = None
        self.seen: Pulse | None = None  # the last pulse of the process that lives now
        self.born = 0  # bytes of the log that were written before it
        self.ooms = 0  # what `pulse.oom_kills` said when it was last seen

    def spawn(self) -> None:
        """Start the process; the one before it has been killed."""
        self.seen, self.ooms = None, pulse.oom_kills()
        self.born = self.log.stat().st_size if self.log.is_file() else 0
        made = ray.remote(concurrency_groups={"life": 4})(Host)
        self.actor = made.options(**self.options).remote(self.name, self.out)

    async def become(self, module: str, kind: str, *args: Any) -> None:
        await self.pulse(math.inf)  # so that its number is known, and it can be killed
        await self._told(self.actor.become.remote(module, kind, *args))
        await self.pulse(math.inf)

    async def call(self, method: str, *args: Any) -> Any:
        return await self._told(self.actor.call.remote(method, *args))

    async def address(self) -> tuple[str, int]:
        return await self._told(self.actor.address.remote())

    async def pulse(self, within: float) -> Pulse:
        asked = self._told(self.actor.pulse.remote())
        try:
            self.seen = answer = await asyncio.wait_for(asked, within if within < math.inf else None)
            self.ooms = pulse.oom_kills()
        except TimeoutError:
            seen = f" ({self.seen.told})" if self.seen else ""
            raise Lost(self.name, f"has said nothing for {within:g} s{seen}", True) from None
        return answer

    async def interrupt(self) -> None:
        """Call `interrupt` of what the process is, also while that is busy; a process that is lost is reported elsewhere."""
        if self.actor is not None:
            with suppress(Lost, TimeoutError):
                await asyncio.wait_for(self._told(self.actor.interrupt.remote()), INTERRUPT)

    async def stacks(self) -> None:
        """Let the process write all its stacks into its log, also one that is stopped or blocked."""
        self.signal(pulse.STACKS)
        self.signal(signal.SIGCONT)
        await asyncio.sleep(0.5)  # it takes a moment to write them

    def kill(self) -> None:
        """End the process, whatever state it is in."""
        if self.actor is not None:
            self.signal(signal.SIGKILL)  # Ray's own kill waits for one that is stopped
            ray.kill(self.actor)
            self.actor = None

    def signal(self, number: int) -> None:
        if self.actor is None or self.seen is None:
            return
        if self.seen.node != get_node_ip_address():
            self.actor.signal.remote(number)
            return
        try:
            os.kill(self.seen.pid, number)
        except ProcessLookupError:
            return

    async def _told(self, reply: Awaitable[Any]) -> Any:
        try:
            return await reply
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, StorageError) or (isinstance(cause, OSError) and cause.errno in FULL):
                raise StorageError(f"{self.name}: {cause}") from None
            if isinstance(cause, Wounded) or type(cause).__name__ in CUT_OFF or any(word in str(cause) for word in GLOO):
                raise Lost(self.name, f"cannot go on: {type(cause).__name__}: {cause}", True, self.words()) from None
            raise self.failure(
                f"{self.name} failed: {type(cause).__name__}: {cause}\nthe whole story is in {self.log}\n{self.words()}"
            ) from error
        except GONE as error:
            why = cause_of_death(str(error), self._last(WORDS), self.seen, self._out_of_memory())
            raise Lost(self.name, f"died: {why}", words=self.words()) from None

    def _out_of_memory(self) -> bool | None:
        """Has the kernel killed for want of memory since the process was seen? None: it was on another node."""
        if self.seen is None or self.seen.node != get_node_ip_address():
            return None
        return pulse.oom_kills() > self.ooms

    def words(self, lines: int = 12) -> str:
        """The last ones of its log."""
        tail = self._last(300 * lines).splitlines()[-lines:]
        told = [f"the last lines of {self.log}:", *(f"    {line[:300]}" for line in tail)]
        return "\n".join(told) if tail else f"it wrote nothing to {self.log}"

    def _last(self, most: int) -> str:
        """Of what the process wrote, the end: so many bytes. What stands before it in the log is of another life."""
        try:
            with self.log.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(self.born if self.born <= size else 0, size - most))
                return file.read().decode(errors="replace")
        except OSError as error:
            return f"it left no log: {error}"


def log_of(name: str, out: str) -> Path:
    return Path(out).absolute() / "logs" / f"{name}.log"


def cause_of_death(told: str, words: str, seen: Pulse | None = None, out_of_memory: bool | None = None) -> str:
    """Why a process ended, as far as can be known: by what Ray has `told`, by its last `words`, and by whether the kernel
    has killed something for want of memory since it was `seen` (None: who knows)."""
    was = f" It was {seen.told}." if seen else ""
    if fatal := FATAL.search(words):
        where = f" in {at[3]} ({at[1]}:{at[2]})" if (at := CURRENT.search(words, fatal.end())) else ""
        return f"{fatal[1]}{where}; its stacks are in its log"
    if low := re.search(r"Memory on the node .*? was ([^\n]* limit)", told):
        return (f"killed by Ray, for the node ran low on memory: {low[1]} (RAY_memory_usage_threshold).{was} Fewer or smaller "
                "processes a node, or a smaller learner.tokens, need less")  # fmt: skip
    if "End of file" not in told:
        return told.strip().splitlines()[-1].rpartition("Worker exit detail: ")[2]
    if out_of_memory:
        return (f"killed by the kernel, which ran out of memory.{was} Fewer or smaller processes a node, or a smaller "
                "learner.tokens, need less")  # fmt: skip
    kernel = ", by the kernel for want of memory," if out_of_memory is None else ","
    return f"killed from outside (SIGKILL){kernel} or ended by its own code; it had no time for a last word.{was}"
