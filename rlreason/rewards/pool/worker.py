"""A process that judges answers, and can be killed at any moment: `python -m rlreason.rewards.pool.worker`, for pool.py alone.

It is two processes. The guard runs nobody's code: it waits for its child, which runs everybody's, and ends whatever the
child leaves behind, also when the process that wanted the answers judged is gone. The child reads one JSON line after
the other from its socket (the names of rewards and an answer) and says on it, as it goes:

    ["loaded", name, seconds]                     this reward is imported; an answer may take it so long
    ["ready"]                                     answers may come
    ["begun", id, name]                           a coroutine: the reward waits for something, and others go on
    ["part", id, name, value, cause, seconds]     a part of the reward: a number; or null, and how it failed or ""
    ["away", id, name, cause]                     the service that this reward asks is not there: to be asked again later
    ["leaving"]                                   memory ran out: this process ends, and none of what is left is to blame
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import importlib.util
import inspect
import json
import math
import numbers
import os
import reprlib
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, NamedTuple

from rlreason.rewards import FACTS, find, wanted
from rlreason.types import Task

SUBREAPER, PARENT_DEATH = 36, 1  # PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG of <linux/prctl.h>
LIBRARIES = {  # slow to import
    "math": "math_verify", "cosine": "math_verify", "language": "py3langid", "gym": "reasoning_gym", "judge": "httpx",
}  # fmt: skip
TURN = 0.1  # seconds between two looks at a coroutine
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60


def guard(parent: int) -> None:
    """Become two processes; returns in the child only.

    The guard dies with `parent`, and everything below the guard with the guard: orphans, too, have become its children.
    """
    _prctl(SUBREAPER, 1)
    _prctl(PARENT_DEATH, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    me, child = os.getpid(), os.fork()
    if not child:
        os.setsid()
        _prctl(PARENT_DEATH, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        return

    def kill(*_: Any) -> None:
        if os.getppid() == parent:  # else nothing hangs: who wanted answers judged is gone
            os.kill(child, signal.SIGUSR1)  # a last word: where it hangs, for the log
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) and ended.si_pid != child:
        os.waitpid(ended.si_pid, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(child, signal.SIGKILL)  # not reaped yet, so the number is still its own
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _bury()
    os._exit(code if code >= 0 else 128 - code)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def _bury() -> None:
    """Kill and reap every process below this one; as a parent dies, its children come here."""
    import psutil

    while True:
        for process in psutil.Process().children():
            os.kill(process.pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


class Loaded(NamedTuple):
    """A reward, ready to be called."""

    call: Callable[..., Any] | None
    problem: str  # why there is none
    options: dict[str, Any]
    facts: tuple[str, ...]  # that it wants
    seconds: float  # that it may take for one answer


class Judge:
    """The child: plain functions one at a time, on the main thread; coroutines side by side, on a thread of theirs.

    A plain function must find no event loop running: it may want to start its own.
    """

    def __init__(self, channel: socket.socket, setup: dict[str, Any]):
        self.channel, self.lock, self.pid = channel, threading.Lock(), os.getpid()
        self.options: dict[str, dict[str, Any]] = setup["options"]
        self.timeout: float = setup["timeout"]
        self.rewards: dict[str, Loaded] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        for name in setup["names"]:
            self.load(name)
        self.say("ready")

    def say(self, *message: Any) -> None:
        if os.getpid() != self.pid:  # a reward has forked, and its child came back from it
            os._exit(0)
        line = json.dumps(message).encode() + b"\n"
        try:
            with self.lock:
                self.channel.sendall(line)
        except (BrokenPipeError, ConnectionResetError):  # nobody wants anything judged any more
            os._exit(0)

    def load(self, name: str) -> Loaded:
        if name not in self.rewards:
            self.rewards[name] = loaded = _load(name, self.options.get(name, {}), self.timeout)
            self.say("loaded", name, loaded.seconds)
        return self.rewards[name]

    def answer(self, id_: int, names: list[str], task: Task, text: str, facts: dict[str, Any]) -> None:
        """Judge one answer; every part is said as soon as it is known."""
        for name in names:
            reward = self.load(name)
            if reward.call is None:
                self.say("part", id_, name, None, reward.problem, 0.0)
                continue
            began = time.perf_counter()
            try:
                value = reward.call(task, text, **{fact: facts[fact] for fact in reward.facts}, **reward.options)
                if inspect.isawaitable(value):
                    self.say("begun", id_, name)
                    asyncio.run_coroutine_threadsafe(self.wait(id_, name, value, reward.seconds), self.side())
                    continue
                part, cause = number(value)
            except ConnectionRefusedError as error:
                self.say("away", id_, name, raised(error))
                continue
            except BaseException as error:  # not even sys.exit() in a user's function may end this process
                part, cause = None, raised(error)
            self.part(id_, name, part, cause, began)

    async def wait(self, id_: int, name: str, value: Awaitable[Any], seconds: float) -> None:
        began, left = time.perf_counter(), seconds
        try:
            task = asyncio.ensure_future(value)
            while left > 0 and not task.done():  # by turns, not by the clock: a plain function may hold up this thread
                await asyncio.wait({task}, timeout=min(left, TURN))
                left -= TURN
            if task.done():
                part, cause = number(task.result())
            else:
                task.cancel()
                await asyncio.wait({task}, timeout=TURN)
                if not task.done():  # it does not listen: whoever waits for the answer will end this process
                    return
                part, cause = None, hung(seconds)
        except ConnectionRefusedError as error:
            self.say("away", id_, name, raised(error))
            return
        except BaseException as error:  # as above
            part, cause = None, raised(error)
        self.part(id_, name, part, cause, began)

    def part(self, id_: int, name: str, part: float | None, cause: str, began: float) -> None:
        self.say("part", id_, name, part, cause, time.perf_counter() - began)
        if cause.startswith("raised MemoryError"):
            self.say("leaving")
            os._exit(0)  # whose memory it is that has run out, nobody knows

    def side(self) -> asyncio.AbstractEventLoop:
        """The event loop of the coroutines, on its thread."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True).start()
        return self.loop


def _load(name: str, options: dict[str, Any], timeout: float) -> Loaded:
    """Import a reward, and what it will import itself: none of that is to count against the time of its first answer."""
    library = LIBRARIES.get(name)
    if library and importlib.util.find_spec(library):
        importlib.import_module(library)
    try:
        reward, problem = find(name)
    except BaseException as error:  # a module that calls sys.exit() when it is imported
        reward, problem = None, raised(error)
    if reward is None:
        return Loaded(None, f"cannot be loaded: {problem}", {}, (), timeout)
    parameters, more = wanted(reward)
    own = "timeout" in parameters
    seconds = options.get("timeout", parameters["timeout"].default if own else timeout)
    if own:  # it may mean a part of its work by it, and had better end by itself than be killed
        seconds = max(seconds, timeout)
    facts = tuple(fact for fact in FACTS if fact in parameters or more)
    given = {option: value for option, value in options.items() if option != "timeout" or own}
    return Loaded(reward, "", given, facts, float(seconds))


def number(value: Any) -> tuple[float | None, str]:
    """What a reward gave, as a finite number; else None, and what is wrong with it. Its None is left as it is.

    bool counts as a number, and so does a scalar of numpy or torch.
    """
    if value is None:
        return None, ""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, numbers.Real | Decimal):
        return None, f"gave no number: {SHORT.repr(value)}"
    try:
        part = float(value)
    except OverflowError:
        part = math.inf
    return (part, "") if math.isfinite(part) else (None, f"gave no finite number: {SHORT.repr(value)}")


def raised(error: BaseException) -> str:
    """One line: what was raised, and where."""
    lines = traceback.format_exception_only(error)
    said = " ".join(lines[-1 if isinstance(error, SyntaxError) else 0].split())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"raised {said:.200}{where}"


def hung(seconds: float) -> str:
    return f"hung for more than {seconds:g} s and was stopped"


def main(descriptor: int, parent: int) -> None:
    guard(parent)
    channel = socket.socket(fileno=descriptor)
    lines = channel.makefile("rb")
    setup = json.loads(lines.readline() or b"null")
    if setup is None:  # nobody wants anything judged any more
        return
    memory = int(setup["memory"] * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    judge = Judge(channel, setup)
    for line in lines:
        id_, names, task, text, facts = json.loads(line)
        judge.answer(id_, names, Task(*task), text, facts)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
