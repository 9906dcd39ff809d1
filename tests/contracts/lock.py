"""requirements/gpu.lock, checked without installing it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==([\w.!+]+)")


def pins(text: str) -> dict[str, str]:
    """Versions by canonical name. Raises `ValueError` for a line that is not one pin, or a second one of the same package."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = PIN.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{line!r} is not name==version")
        name = canonicalize_name(match[1])
        if name in found:
            raise ValueError(f"{name} is pinned twice")
        found[name] = match[2]
    return found


def bounds(pyproject: Path, extra: str) -> list[str]:
    """Requirements of the project and of one of its extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def problems(lock: str, requires: str, bounds: list[str]) -> Iterator[str]:
    """What `pip check` would report, by the recorded metadata; and bounds of the project that the lock does not keep.

    Args:
        lock: Text of gpu.lock.
        requires: Text of gpu.requires, what each pin asks for.
        bounds: Requirements of the project itself.
    """
    pinned, recorded = pins(lock), json.loads(requires)
    for pin in sorted({f"{name}=={version}" for name, version in pinned.items()} ^ {*recorded}):
        yield f"{pin} is in only one of gpu.lock and gpu.requires: run requirements/lock.sh gpu"
    for source, wanted in [("pyproject.toml", bounds), *recorded.items()]:
        for requirement in map(Requirement, wanted):
            version = pinned.get(canonicalize_name(requirement.name))
            if version is None:
                yield f"{source} needs {requirement}, which is not locked"
            elif not requirement.specifier.contains(version, prereleases=True):
                yield f"{source} needs {requirement}, locked is {version}"
