"""Kills its own process at the n-th line that it executes inside chosen functions: as a crash would, at a chosen point.

A test switches it on for the processes of a run, from outside: `armed/` comes first on PYTHONPATH, where Python finds a
`sitecustomize` that calls `arm`, and `RLREASON_DIE` says where, in JSON:

    process  part of the command line of the processes that are meant: -m rlreason (the driver), default_worker.py (Ray's)
    where    functions, as file:qualified name; a file with nothing behind the colon is all of its functions
    after    a function, by its qualified name, before which nothing is counted; empty counts from the start
    at       the number of the line, counted from 1 in each process, or its text in the log: the first such; 0 kills nobody
    log      the file that gets every line that was counted: process, file, line and function
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

VARIABLE = "RLREASON_DIE"


def arm() -> None:
    """Watch this process, if the environment says so."""
    if said := os.environ.get(VARIABLE):
        order = json.loads(said)
        if order["process"] in " ".join(sys.orig_argv):
            watch(order["where"], order["at"], Path(order["log"]), order["after"])


def watch(where: Sequence[str], at: int | str, log: Path, after: str = "") -> None:
    """Count lines from here on in this process, in all threads that begin after this."""
    chosen = [tuple(one.split(":")) for one in where]
    known: dict[CodeType, bool] = {}
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count, counting = 0, not after

    def meant(code: CodeType) -> bool:
        return code.co_name != "<module>" and any(
            code.co_filename.endswith(path)
            and (not name or code.co_qualname == name or code.co_qualname.startswith(f"{name}."))
            for path, name in chosen
        )

    def calls(frame: FrameType, event: str, argument: Any) -> Any:
        if (code := frame.f_code) not in known:
            known[code] = meant(code)
        return lines if known[code] else None

    def lines(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count, counting
        counting = counting or frame.f_code.co_qualname == after
        if event == "line" and counting:
            count += 1
            told = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_qualname}"
            os.write(file, f"{os.getpid()} {told}\n".encode())
            if at in (count, told):
                os.kill(os.getpid(), signal.SIGKILL)
        return lines

    threading.settrace(calls)
    sys.settrace(calls)
