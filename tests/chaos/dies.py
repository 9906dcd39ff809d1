"""Kills its own process at a chosen line of chosen functions, as a crash would.

A test switches it on for the processes of a run, from outside: `armed/` comes first on PYTHONPATH, where Python finds a
`sitecustomize` that calls `arm`, and `RLREASON_DIE` says what, in JSON, as a list of orders:

    process  part of the command line of the processes that are meant: -m rlreason (the driver), default_worker.py (Ray's)
    module   watch from the import of this module on, and in the thread that imports it: watching slows a process down
    where    functions, as file:qualified name; a file with nothing behind the colon is all of its functions. The first one
             begins a round, and before it is called nothing counts
    points   the lines to die at, as they stand in `lines`; null kills nobody, and writes down the lines instead
    rounds   every process lets 0, 1, … rounds pass before it dies, in turns up to so many
    folder   of `deaths/`, a file for each line that a process has died at, with the time; and of `lines`
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

VARIABLE = "RLREASON_DIE"

Dies = Callable[[str, int], bool]  # asked of a line and the round that it is come to in: is it here?


def arm() -> None:
    """Watch this process, if the environment says so."""
    if said := os.environ.get(VARIABLE):
        for order in json.loads(said):
            if order["process"] in " ".join(sys.orig_argv):
                sys.meta_path.insert(0, At(order["module"], partial(obey, order)))


def obey(order: dict[str, Any]) -> None:
    folder, points = Path(order["folder"]), order["points"]
    watch(order["where"], listed(folder / "lines") if points is None else unused(points, order["rounds"], folder / "deaths"))


class At:
    """Asked by Python where a module is: it does not know, but does something when it is one module's turn."""

    def __init__(self, module: str, action: Callable[[], None]):
        self.module, self.action = module, action

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.module and self in sys.meta_path:
            sys.meta_path.remove(self)
            self.action()


def nth(number: int) -> Dies:
    """Of all lines, counted from 1; 0 is none."""
    counted = itertools.count(1)
    return lambda line, turn: next(counted) == number


def listed(log: Path) -> Dies:
    """Nowhere: each line is written down, the first time that it is come to."""
    seen: set[str] = set()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def here(line: str, turn: int) -> bool:
        if turn and line not in seen:
            seen.add(line)
            os.write(file, f"{line}\n".encode())
        return False

    return here


def unused(points: Sequence[str], rounds: int, deaths: Path) -> Dies:
    """At the first of `points` that no process has died at."""
    wait: int | None = None

    def here(line: str, turn: int) -> bool:
        nonlocal wait
        if not turn:
            return False
        if wait is None:
            wait = len(os.listdir(deaths)) % rounds
        if turn <= wait or line not in points:
            return False
        try:
            file = os.open(deaths / line, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        os.write(file, str(time.time()).encode())
        return True

    return here


def watch(where: Sequence[str], dies: Dies) -> None:
    """From here on in this process: in new calls of this thread, and in all threads that begin after this."""
    chosen = [tuple(one.split(":")) for one in where]
    known: dict[CodeType, bool] = {}
    turn = 0

    def among(code: CodeType, path: str, name: str) -> bool:
        inside = not name or code.co_qualname == name or code.co_qualname.startswith(f"{name}.")
        return inside and code.co_filename.endswith(path)

    def calls(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal turn
        if (code := frame.f_code) not in known:
            known[code] = code.co_name != "<module>" and any(among(code, *one) for one in chosen)
        if not known[code]:
            return None
        turn += code.co_qualname == chosen[0][1] and frame.f_lineno == code.co_firstlineno  # else a coroutine goes on
        return lines

    def lines(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if event == "line" and dies(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}", turn):
            os.kill(os.getpid(), signal.SIGKILL)
        return lines

    threading.settrace(calls)
    sys.settrace(calls)
