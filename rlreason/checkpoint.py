"""Commit, find, prune: a checkpoint exists when its manifest does. And every file of a run that has to be whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rlreason.errors import StorageError
from rlreason.storage import free, rename, stored, sync, sync_tree, told

MANIFEST = "MANIFEST.json"
ASIDE = "damaged-"  # before the name of a checkpoint that was moved out of the way


class Found(NamedTuple):
    """The newest checkpoint that is whole. `damaged`: of each newer one that is not, the file and what is wrong with it."""

    folder: Path
    state: dict[str, Any]
    damaged: list[str]


def write_atomic(path: Path, text: str) -> None:
    """Write `path` so that a reader, or a crash, meets the old content or the new, never a part.

    Raises `StorageError`; what was there is as it was.
    """
    _write(path, [text], "strict")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSON object a line, whole or not at all. Raises `StorageError`."""
    _write(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "replace")


def _write(path: Path, parts: Iterable[str], errors: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with stored(path):
        try:
            with partial.open("w", encoding="utf-8", errors=errors) as f:
                f.writelines(parts)
                f.flush()
                os.fsync(f.fileno())
            rename(partial, path)
        except OSError:
            with suppress(OSError):  # on a full disk the part is in the way; where it cannot be removed it does no harm
                partial.unlink()
            raise
        sync(path.parent)


def append(path: Path, line: str) -> None:
    """Add a line that a crash may cut off, but that is on the disk when this returns. Raises `StorageError`."""
    with stored(path), path.open("a", encoding="utf-8") as f:
        f.write(line + "\n")
        f.flush()
        os.fsync(f.fileno())


def read_json(path: Path) -> Any:
    """What a JSON file of a run says. Raises `StorageError` if it is damaged, or gone."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path} is not there any more; what it belongs to has to be made anew") from None
    except ValueError as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise StorageError(told(error, path)) from error


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` point at `target`; at no moment is there none. Raises `StorageError`.

    What stands in its place, if it is no link, makes way: a pointer says nothing that the folders do not.
    """
    partial = link.with_name(f".{link.name}.partial")
    with stored(link):
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        if link.is_dir() and not link.is_symlink():
            link.rename(free(link.with_name(f"{ASIDE}{link.name}")))
        rename(partial, link)
        sync(link.parent)


# ---- a checkpoint's life ----


def begin(folder: Path) -> None:
    """Make room for a checkpoint: what a crash left of an earlier try is no part of it. Raises `StorageError`."""
    if (folder / MANIFEST).exists():
        raise RuntimeError(f"{folder} is committed, and may not be written again")
    with stored(folder):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)


def commit(folder: Path, state: dict[str, Any], beside: Iterable[Path] = ()) -> None:
    """Write the manifest, with the size and checksum of every file; from now on `folder` is a checkpoint.

    Before that all of it is on the disk, and so are the folders `beside`, which belong to it: a power cut leaves a whole
    checkpoint or none. Raises `StorageError`; the older ones are as they were.
    """
    with stored(folder):
        for tree in (*beside, folder):
            sync_tree(tree)
        files = {
            str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": checksum(p)}
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p not in (folder / MANIFEST, folder / f".{MANIFEST}.partial")
        }
        write_atomic(folder / MANIFEST, json.dumps({"state": state, "files": files}, indent=1))


def newest(parent: Path) -> Found | None:
    """The newest checkpoint below `parent` whose sizes and checksums hold, or None if there never was one.

    Newer ones that do not hold are moved aside, as damaged-v<N>: nothing is deleted. Raises `StorageError` if there are
    checkpoints but none that holds, or if there were some: a run never begins anew because it lost its past.
    """
    damaged: dict[Path, str] = {}
    for folder in committed(parent):
        if wrong := problem(folder):
            damaged[folder] = wrong
            continue
        with stored(parent):
            for bad in damaged:
                bad.rename(free(parent / f"{ASIDE}{bad.name}"))
        return Found(folder, read_json(folder / MANIFEST)["state"], [*damaged.values()])
    lost = [*damaged.values(), *(f"{bad} is damaged" for bad in sorted(parent.glob(f"{ASIDE}v*")))]
    if (last := parent.parent / "weights" / "last").is_symlink():
        lost.append(f"{last} leads to {os.readlink(last)}, which had a checkpoint")
    if lost:
        raise StorageError("\n".join([f"{parent} holds no checkpoint that is whole, so there is nothing to go on from:",
                                      *(f"    {one}" for one in lost[:8]),
                                      "    bring one back, or say --fresh to begin anew; nothing was deleted"]))  # fmt: skip
    return None


def unfit(parent: Path, ranks: int, stage: int) -> str:
    """Why `ranks` learners under ZeRO `stage` cannot take up the newest checkpoint, and what to do; empty if they can.

    DeepSpeed writes the whole state once under ZeRO 0 in float32, which any number of ranks reads. Else each rank writes
    its part, and reads nothing but the same part under the same stage.
    """
    folder = next((f for f in committed(parent) if not problem(f, False)), None)
    if folder is None:
        return ""
    state = read_json(folder / MANIFEST)["state"]
    sharded = any((folder / "deepspeed").glob("*zero_pp_rank_*"))
    was = state.get("ranks", ranks), state.get("stage", stage if sharded else 0)
    if was == (ranks, stage) or (not sharded and stage == was[1] == 0):
        return ""
    return (
        f"learner: {folder} was written by {was[0]} learners under ZeRO {was[1]}, and {ranks} under ZeRO {stage} cannot read "
        f"it; say learner.workers={was[0]} learner.deepspeed.zero_optimization.stage={was[1]}, or begin another run with "
        f"model={parent.parent / 'weights' / folder.name}"
    )


def committed(parent: Path) -> list[Path]:
    """The folders below `parent` that have a manifest, newest first."""
    return [folder for folder in _versions(parent) if (folder / MANIFEST).is_file()]


def problem(folder: Path, thorough: bool = True) -> str:
    """Which file of a checkpoint is not what its manifest says, and how; empty if all are. `thorough`: read them all.

    Raises `StorageError` if one cannot be read for a reason that may pass: that is no damage.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(about["bytes"]), str(about["sha256"])) for name, about in manifest["files"].items()}
        dict(manifest["state"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder / MANIFEST} is damaged: {type(error).__name__}: {error}"
    with stored(folder):
        return next((wrong for name, known in files.items() if (wrong := _differs(folder / name, *known, thorough))), "")


def _differs(file: Path, size: int, sha256: str, thorough: bool) -> str:
    if not file.is_file():
        return f"{file} is missing"
    if file.stat().st_size != size:
        return f"{file} has {file.stat().st_size} bytes, and had {size}"
    try:
        return f"{file} has another checksum than when it was written" if thorough and checksum(file) != sha256 else ""
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"{file} cannot be read: {error.strerror}"


def prune(parent: Path, keep: int = 2) -> list[str]:
    """Remove all but the newest `keep` checkpoints, and what never became one. To be called after a commit.

    Returns what could not be removed, and why: that is tried again the next time, and no reason to end a run.
    """
    kept = committed(parent)[: max(1, keep)]
    return [wrong for folder in _versions(parent) if folder not in kept and (wrong := _removed(folder))]


def prune_weights(weights: Path, checkpoints: Path) -> list[str]:
    """Remove published directories whose checkpoint is gone; but not the best one. Returns what could not be removed."""
    kept = {folder.name for folder in _versions(checkpoints)} | {(weights / link).resolve().name for link in ("best", "last")}
    return [wrong for folder in weights.glob("v[0-9]*") if folder.name not in kept and (wrong := _removed(folder))]


def tidy(out: Path, version: int, keep: int) -> list[str]:
    """Clear up what a crash left in a run that goes on from checkpoint v<version>: `prune`, `prune_weights`, `weights/last`
    leads to that checkpoint's weights, and a `weights/best` that leads nowhere is taken away. Returns what was amiss."""
    weights, mended = out / "weights", []
    last, best = weights / "last", weights / "best"
    if (weights / f"v{version}").is_dir() and not (last.is_symlink() and os.readlink(last) == f"v{version}"):
        was = os.readlink(last) if last.is_symlink() else "no link" if last.exists() else "not there"
        point(last, f"v{version}")
        mended.append(f"{last} was {was}, and leads to v{version} now")
    if best.is_symlink() and not best.exists():
        mended.append(f"{best} led to {os.readlink(best)}, which is gone")
        with stored(best):
            best.unlink()
    return mended + prune(out / "checkpoints", keep) + prune_weights(weights, out / "checkpoints")


def _removed(folder: Path) -> str:
    """Remove a folder; returns what is in the way, such as files that a network file system holds open."""
    try:
        _remove(folder)
    except OSError as error:
        return f"{folder} could not be removed: {told(error, folder)}"
    return ""


def _remove(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # first, so that half a folder is no checkpoint
    shutil.rmtree(folder)


def _versions(parent: Path) -> list[Path]:
    """The folders v<N>, newest first, by number."""
    return sorted((f for f in parent.glob("v*") if f.name[1:].isdigit() and f.is_dir()), key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name[1:])


def checksum(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
