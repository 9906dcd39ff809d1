"""One process that judges answers, seen from the side that asks. What it runs is worker.py; pool.py has several."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import psutil

START = 120.0  # seconds that a process may take to start, and a module to be imported
PATIENCE = 5.0  # seconds for a process to end
LATE = 1.0  # seconds for a coroutine to end by itself when its time is up
WAITING = 64  # answers at most that a process has at a time, coroutines included
MARK = "RLREASON_JUDGE"  # an environment variable, which tells whose a process is
AHEAD = 0.1  # seconds of work that a process is given ahead, so that it need not wait for this one


@dataclass(eq=False, slots=True)
class Asked:
    """An answer that is being judged, by the rewards in `left` and `waiting`."""

    number: int
    body: str  # task, text and facts, as JSON
    left: list[str]  # rewards that are to be called, in this order
    done: asyncio.Future[None]
    waiting: dict[str, float] = field(default_factory=dict)  # coroutines under way -> since when
    parts: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)  # rewards whose service did not answer, and what they met with
    waited: set[str] = field(default_factory=set)  # rewards that were coroutines
    deaths: int = 0  # of processes, each of which it may have caused
    by: Process | None = None  # who was asked last
    other: Process | None = None  # who had better not be asked
    alone: bool = False  # to be judged in a process that does nothing else, for certainty

    def part(self, name: str, value: float | None, failure: str) -> None:
        self.parts[name] = value
        if failure:
            self.failures[name] = failure

    def end(self) -> None:
        if not self.done.done():  # it may have been cancelled
            self.done.set_result(None)


class Process:
    """One process, seen from here. What it was asked it works through in order; coroutines wait beside that."""

    def __init__(self, setup: dict[str, Any], log: int):
        ours, theirs = socket.socketpair()
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
        self.mark = uuid.uuid4().hex
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # what can be imported here can be there
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlreason.rewards.pool.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()], start_new_session=True,
                env=os.environ | one | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", MARK: self.mark},
            )  # fmt: skip
        ours.setblocking(False)
        self.socket, self.unsent, self.unread = ours, bytearray(json.dumps(setup).encode() + b"\n"), b""
        self.ready = self.leaving = False
        self.limits: dict[str, float] = {}  # seconds for one answer, of each reward that it has loaded
        self.asked: dict[int, Asked] = {}
        self.line: deque[Asked] = deque()  # those of them with a reward that is still to be called; the first is at work
        self.since = time.monotonic()  # the reward at work began no later than that
        self.pace = AHEAD / 2  # mean seconds of a call, lately
        self.blamed = ""  # why it is being killed
        self.likely: list[Asked] = []  # and on account of which answers
        self.killed = math.inf  # when

    def free(self, alone: bool) -> bool:
        """May it be asked one more?"""
        if not self.ready or self.leaving or self.blamed:
            return False
        if alone or any(asked.alone for asked in self.asked.values()):
            return not self.asked
        return len(self.asked) < WAITING and len(self.line) < max(2.0, AHEAD / max(self.pace, 1e-6))

    def ask(self, asked: Asked) -> None:
        if not self.line:
            self.since = time.monotonic()
        self.asked[asked.number], asked.by = asked, self
        self.line.append(asked)
        self.unsent += f"[{asked.number},{json.dumps(asked.left)},{asked.body}]\n".encode()

    def send(self) -> bool:
        """Send what the socket takes; is there more?"""
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            return True
        except (BrokenPipeError, ConnectionResetError):  # it is dead, and will be found so when it is read from
            self.unsent.clear()
        return False

    def read(self) -> bool:
        """Take in what it has said; is it still there?"""
        alive, said = True, [self.unread]
        try:
            while piece := self.socket.recv(1 << 16):
                said.append(piece)
            alive = False
        except BlockingIOError:
            pass
        except ConnectionResetError:
            alive = False
        *lines, self.unread = b"".join(said).split(b"\n")
        for line in lines:
            if self.blamed:  # a signal may wake what hangs, and it then gives a value as if nothing had been
                break
            try:
                self.hear(*json.loads(line))
            except (ValueError, TypeError, LookupError):  # a reward wrote into what it found open
                self.kill("wrote into the connection over which rewards are told", [*self.line][:1])
        return alive

    def hear(self, what: str, *said: Any) -> None:
        """One message of those that worker.py lists."""
        now = time.monotonic()
        if what in ("loaded", "ready"):
            self.since = now
            if what == "ready":
                self.ready = True
            else:
                self.limits[said[0]] = said[1]
        elif what == "leaving":
            self.leaving = True
        else:
            asked, name = self.asked[said[0]], said[1]
            called = asked.waiting.pop(name, None) is None
            if called:
                for other in self.asked.values():  # coroutines cannot go on while a plain function is at work
                    other.waiting = {coroutine: since + now - self.since for coroutine, since in other.waiting.items()}
                self.since = now
                asked.left.remove(name)
                if not asked.left:
                    self.line.popleft()
            if what == "begun":
                asked.waiting[name] = now
                asked.waited.add(name)
            elif what == "away":
                asked.away[name] = said[2]
            else:
                _, _, value, failure, seconds = said
                asked.part(name, value, failure)
                if called:
                    self.pace += 0.1 * (seconds - self.pace)
            if not asked.left and not asked.waiting:
                del self.asked[asked.number]
                asked.end()

    def under_way(self) -> list[tuple[Asked, str]]:
        """What may be to blame if it dies now: the reward at work, and every coroutine."""
        at_work = [(asked, asked.left[0]) for asked in [*self.line][:1]]
        return at_work + [(asked, name) for asked in self.asked.values() for name in asked.waiting]

    def look(self) -> None:
        """Kill it if something takes longer than it may."""
        now = time.monotonic()
        if not self.ready:
            if now > self.since + START:
                self.kill(f"was not ready to judge after {START:g} s", [])
            return
        if self.line:
            limit = self.limits.get(self.line[0].left[0], START)
            if now > self.since + limit:
                self.kill(hung(limit), [self.line[0]])
            return
        late = {asked: self.limits[name] for asked in self.asked.values() for name, since in asked.waiting.items()
                if now > since + self.limits[name] + LATE}  # fmt: skip
        if late:  # by itself it would have ended before: something holds up all coroutines
            self.kill(hung(min(late.values())), [*late])

    def kill(self, why: str, likely: list[Asked]) -> None:
        self.blamed, self.likely, self.killed = why, likely, time.monotonic()
        self.process.terminate()  # the guard, which ends all that is below it

    def leave(self) -> None:
        """Hear and say no more."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.socket)
        loop.remove_writer(self.socket)
        self.socket.close()

    def died(self) -> str:
        """How it ended, as a cause."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code < 0:  # not even the guard could end what is below it
            self.bury()
        if self.blamed:
            return self.blamed
        if code - 128 in {*signal.Signals}:  # the guard tells it as a shell does
            return f"died of signal {code - 128} ({signal.Signals(code - 128).name})"
        return f"exited with status {code}"

    def bury(self) -> None:
        """Kill what a reward has started and what outlived the guard: all that has inherited the mark."""
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue


def hung(seconds: float) -> str:
    return f"hung for more than {seconds:g} s and was killed"
