"""A disk that is full, read-only, slow or far away: what it refuses is tried again or told, and what is written is there."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rlreason.errors import StorageError

WAITS = (0.1, 0.5, 2.0)  # seconds before a rename that a network file system refused is tried again
PASSING = {errno.ESTALE, errno.ETIMEDOUT, errno.EINTR}  # what they refuse with
ADVICE = {
    errno.ENOSPC: "the disk is full; make room, and the same command goes on from the newest checkpoint",
    errno.EDQUOT: "the quota is used up; make room, and the same command goes on from the newest checkpoint",
    errno.EFBIG: "the file is larger than the file system, or ulimit -f, allows",
    errno.EROFS: "the file system is read-only; mount it for writing, or say another out=…",
    errno.EACCES: "this user may not write there; give the folder to it, or say another out=…",
    errno.EPERM: "this user may not write there; give the folder to it, or say another out=…",
    errno.ESTALE: "the network file system lost the file; see whether its server is up, and run the same command again",
    errno.EIO: "the disk, or the way to it, is failing; see the kernel's log",
}


@contextmanager
def stored(path: Path) -> Iterator[None]:
    """Tell a failure of storage as one: the path, what is wrong, and what to do. Raises `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(told(error, path)) from error
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors make of it
        if not (number := _number(str(error))):
            raise
        raise StorageError(told(OSError(number, os.strerror(number)), path)) from error


def _number(text: str) -> int:
    """The system's number for what a library could not write; 0 if it is about something else."""
    if said := re.search(r"\(os error (\d+)\)", text):
        return int(said[1])
    # Of torch's writer, which has no more to say than that fewer bytes were written than it had. It is a full disk.
    return errno.ENOSPC if "inline_container.cc" in text else 0


def told(error: OSError, path: Path) -> str:
    """An `OSError` as a line of a message: where, what, and what to do about it."""
    advice = ADVICE.get(error.errno or 0)
    return f"{error.filename or path}: {error.strerror or error}" + f": {advice}" * bool(advice)


def rename(source: Path, target: Path) -> None:
    """Rename, and see that it was done: a network file system may refuse one that works a moment later, or answer to one
    that it repeated, and that had worked, that the source is not there."""
    mark = _mark(source)
    for wait in (*WAITS, None):
        try:
            os.replace(source, target)
        except OSError as error:
            again = error.errno in PASSING or (error.errno == errno.ENOENT and wait != WAITS[0])
            if again and _mark(target) == mark:
                return
            if wait is None or error.errno not in PASSING:
                raise
            time.sleep(wait)
        else:
            return


def _mark(path: Path) -> tuple[int, int] | None:
    """Which file this is, whatever its name; None if there is none."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in PASSING:
            return None
        raise
    return about.st_dev, about.st_ino


def sync(path: Path) -> None:
    """Return when the content of a file, or the entries of a folder, would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such thing of a folder
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` all that is in a folder, and its own entry."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        if path.is_dir() or (path.is_file() and not path.is_symlink()):
            sync(path)


def free(path: Path) -> Path:
    """`path`, or `path`.1, .2, …: the first that is not taken."""
    taken, found = 0, path
    while found.exists() or found.is_symlink():
        taken += 1
        found = path.with_name(f"{path.name}.{taken}")
    return found
