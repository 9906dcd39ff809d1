"""Weights of which only what has changed is written, in files: for links that are slow.

A bfloat16 weight has 8 bits of precision, and a step moves most weights by less than the last of them: one or two in a
hundred change. The learner's end keeps what it has published, finds those that differ in any bit, and writes their places
and their new values; the engine's end keeps the same in host memory, and puts them in. A checksum of the whole says that
both hold the same.

The folder holds a publication that is whole, and those after it that are not. An engine that is new begins with the whole one,
and one that has missed some reads those too.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlreason.errors import WeightsUnavailable, Wounded

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of as many bytes: compared bit by bit
AT, TO = "at:", "to:"  # before a tensor's name: the places in it that changed, and what stands there now


class Changes:
    """The learner's end. What it has published stays readable until the next is.

    It holds a copy of the weights in host memory, and two while it publishes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.life = secrets.token_hex(4)  # an engine may remember the publications of a learner that is no more
        self.number = self.whole = 0  # of the newest publication, and of the newest that is whole
        self.before: dict[str, Tensor] = {}
        self.written = 0  # bytes since the newest that is whole

    def publish(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Write what is new in `tensors`, or all of it, where that is not much more. Returns what `Held.read` asks for."""
        now = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
        alike = _kinds(self.before) == _kinds(now) and file(self.folder, self.life, self.whole).is_file()
        changes = _changes(self.before, now) if alike else now
        number, size = self.number + 1, sum(t.nbytes for t in now.values())
        # One that is behind reads the whole one and all after it: together at most twice as much.
        written = self.written + sum(t.nbytes for t in changes.values())
        whole = self.whole
        if not alike or written > size:
            changes, written, whole = now, 0, number
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "partial"
        save_file(changes, partial)
        partial.replace(file(self.folder, self.life, number))
        # From here on it is published; one that could not be written has never been.
        self.number, self.whole, self.written, self.before = number, whole, written, now
        if whole == number:
            for old in self.folder.glob("*.safetensors"):
                if old != file(self.folder, self.life, number):
                    old.unlink()
        return {"path": str(self.folder), "life": self.life, "number": number, "whole": whole,
                "bytes": sum(t.nbytes for t in changes.values()), "checksum": checksum(now)}  # fmt: skip


class Held:
    """The engine's end: what it holds of a learner's publications, in host memory."""

    def __init__(self) -> None:
        self.life, self.number = "", 0
        self.tensors: dict[str, Tensor] = {}

    def read(self, handle: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """All tensors of a publication, whatever was held before.

        Raises `WeightsUnavailable` if newer ones have replaced it, and `Wounded` if what was read is not what was
        published, or is lost.
        """
        life, newest, folder = handle["life"], handle["number"], Path(handle["path"])
        behind = life != self.life or not handle["whole"] <= self.number <= newest
        first = handle["whole"] if behind else self.number + 1
        tensors, self.life, self.tensors = self.tensors, "", {}  # nothing is held if one of them cannot be read
        for number in range(first, newest + 1):
            try:
                read = load_file(file(folder, life, number))
                # Copies: what was read is the mapped file, which another may write to, or remove.
                tensors = (
                    {name: t.clone() for name, t in read.items()} if number == handle["whole"] else _changed(tensors, read)
                )
            except FileNotFoundError as error:
                if {*folder.glob("*.safetensors")} - {file(folder, life, n) for n in range(newest + 1)}:
                    raise WeightsUnavailable(f"{folder}: publication {number} of {life}") from error
                raise Wounded(f"{file(folder, life, number)} is lost, and no newer one has taken its place") from error
            except (SafetensorError, LookupError, RuntimeError, OSError) as error:
                raise Wounded(f"{file(folder, life, number)} cannot be read: {error}") from error
        if checksum(tensors) != handle["checksum"]:
            raise Wounded(f"{folder}: publication {newest} is not what the learner wrote, by its checksum")
        self.life, self.number, self.tensors = life, newest, tensors
        yield from tensors.items()


def file(folder: Path, life: str, number: int) -> Path:
    return folder / f"{life}-{number}.safetensors"


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the names, dtypes and shapes of all tensors, and of the CRC-32s of what is in them."""

    def one(name: str) -> str:
        t = tensors[name]
        return f"{name} {t.dtype} {[*t.shape]} {crc32(_words(t).view(torch.uint8).numpy().data)}"

    with ThreadPoolExecutor() as pool:  # it lets go of Python's lock
        return crc32("\n".join(pool.map(one, sorted(tensors))).encode())


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (t.shape, t.dtype) for name, t in tensors.items()}


def _changes(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name, the places of every tensor that differ, [K] int32 (int64 in one of over 2³¹ weights), and what is there."""
    found: dict[str, Tensor] = {}
    for name, t in now.items():
        at = (_words(t) != _words(before[name])).nonzero()[:, 0]
        if len(at):
            found[AT + name] = at.to(torch.int32) if t.numel() < 1 << 31 else at
            found[TO + name] = t.view(-1)[at]
    return found


def _changed(tensors: dict[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` themselves, with what `_changes` found."""
    for name in [name.removeprefix(AT) for name in changes if name.startswith(AT)]:
        tensors[name].view(-1)[changes[AT + name].long()] = changes[TO + name]
    return tensors


def _words(t: Tensor) -> Tensor:
    return t.reshape(-1).view(WORDS[t.dtype.itemsize])
