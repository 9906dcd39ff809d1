"""reasoning-gym's puzzles by number, the same in every process and on every day. Run as a module it is their maker.

Some of its data sets (word_ladder, knight_swap, ransom_note and two more) iterate over sets of strings, whose order
changes with Python's hash seed from process to process. So puzzles are made in a child whose hash seed is fixed.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from rlreason.errors import ResourceError
from rlreason.types import Task

CHUNK = 500  # puzzles per data set object: some draw up a list of `size` of them when they are made
OURS = ("seed", "size")  # options that a puzzle's number decides


def puzzle(name: str, number: int, **options: Any) -> Task:
    """Puzzle `number` of the data set `name`, made with `options` (those of reasoning-gym's config of that name).

    `info` holds what its scorer needs, as JSON has it: {"gym": name, "options": …, "entry": …}. A few data sets have
    many right answers and name none: `answer` is None.

    Raises `ValueError` for options that the data set does not take.
    """
    entry = _ask({"name": name, "options": options, "number": number})
    answer = entry["answer"]
    info = {"gym": name, "options": options, "entry": entry}
    return Task(f"{name}-{number}", entry["question"], None if answer is None else str(answer), info=info)


@cache
def names() -> list[str]:
    """Every data set that the installed reasoning-gym has."""
    found: list[str] = _ask({})
    return found


@lru_cache(maxsize=32)
def dataset(name: str, options: str, seed: int) -> Any:
    """A data set object of reasoning-gym; `options` is JSON. Loads the package (1 s)."""
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import create_dataset

    given = json.loads(options)
    if name == "composite" and isinstance(given.get("datasets"), list):
        given["datasets"] = [DatasetSpec(**({"config": {}} | spec)) for spec in given["datasets"]]
    return create_dataset(name, **given, seed=seed, size=CHUNK)


def make(name: str, options: dict[str, Any], number: int) -> dict[str, Any]:
    """The entry itself. Data sets seed each item with seed + index, so here with `number`, below 2**32 (numpy's limit)."""
    if taken := [key for key in OURS if key in options]:
        raise ValueError(f"{taken[0]} is not for a recipe to say: the puzzle's number decides it")
    number %= 1 << 32
    entry: dict[str, Any] = dataset(name, json.dumps(options, sort_keys=True), number - number % CHUNK)[number % CHUNK]
    return entry


# ---- the child, and how it is asked: a line of JSON each way ----


@cache
def _maker() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-m", "rlreason.puzzles"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])},
        start_new_session=True,  # a Ctrl-C is the run's to hear; the child ends when its input does
    )


@atexit.register
def end() -> None:
    """End the process that makes puzzles, if there is one; the next puzzle starts another."""
    if _maker.cache_info().currsize:
        child = _maker()
        _maker.cache_clear()
        if child.poll() is None:
            child.__exit__(None, None, None)  # closes its input, and waits


def _ask(request: dict[str, Any]) -> Any:
    child = _maker()
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        _maker.cache_clear()
        raise ResourceError(
            f"the process that makes reasoning-gym's puzzles died with code {child.wait()}, asked for {request}"
        )
    reply = json.loads(line)
    if "error" in reply:
        raise ValueError(reply["error"])
    return reply["value"]


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some data sets print dots and complaints while they work
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if request:
                reply = {"value": make(**request)}
            else:
                from reasoning_gym.factory import DATASETS

                reply = {"value": sorted(DATASETS)}
        except Exception as error:  # the asker's to tell; this process goes on
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply, default=_plain) + "\n")
        replies.flush()


def _plain(value: Any) -> Any:
    """What an entry's metadata may hold beside JSON: numbers of numpy's, and fractions, which no scorer reads."""
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    _serve()
