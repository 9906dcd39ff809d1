"""Commit, find, prune: a checkpoint exists when its manifest does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlreason.errors import StorageError

MANIFEST = "MANIFEST.json"


def write_atomic(path: Path, text: str) -> None:
    """Write `path` so that a reader, or a crash, meets the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSON object a line, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", errors="replace") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """What a JSON file of a run says. Raises `StorageError` if it is damaged, or gone."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path} is not there any more; what it belongs to has to be made anew") from None
    except ValueError as error:
        raise StorageError(f"{path} is damaged: {error}") from None


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` point at `target`; at no moment is there none."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)


def commit(folder: Path, state: dict[str, Any]) -> None:
    """Write the manifest, with the size and checksum of every file; from now on `folder` is a checkpoint."""
    files = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": checksum(p)}
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    write_atomic(folder / MANIFEST, json.dumps({"state": state, "files": files}, indent=1))


def newest(parent: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint below `parent` and its state, or None if there is none.

    Raises `StorageError` if its files are not what its manifest says.
    """
    for folder in sorted(parent.glob("v*"), key=_number, reverse=True):
        if (folder / MANIFEST).is_file():
            manifest = read_json(folder / MANIFEST)
            for name, expected in manifest["files"].items():
                file = folder / name
                if not file.is_file() or file.stat().st_size != expected["bytes"] or checksum(file) != expected["sha256"]:
                    raise StorageError(f"{file} is missing or damaged; remove {folder} to go on from an older checkpoint")
            return folder, manifest["state"]
    return None


def prune(parent: Path, keep: int = 2) -> None:
    """Remove all but the newest `keep` checkpoints, and what never became one. To be called after a commit."""
    folders = sorted(parent.glob("v*"), key=_number, reverse=True)
    committed = [f for f in folders if (f / MANIFEST).is_file()]
    for folder in folders:
        if folder not in committed[:keep]:
            (folder / MANIFEST).unlink(missing_ok=True)  # first, so that half a folder is no checkpoint
            shutil.rmtree(folder)


def prune_weights(weights: Path, checkpoints: Path) -> None:
    """Remove published directories whose checkpoint is gone; but not the best one."""
    kept = {folder.name for folder in checkpoints.glob("v*")} | {(weights / "best").resolve().name}
    for folder in weights.glob("v[0-9]*"):
        if folder.name not in kept:
            shutil.rmtree(folder)


def _number(folder: Path) -> int:
    return int(folder.name[1:]) if folder.name[1:].isdigit() else -1


def checksum(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
