"""Sources of published releases, in a cache outside of the repository: ${XDG_CACHE_HOME:-~/.cache}/rlreason/contracts.

Of a release only `.py` and `.pyi` files are kept, some 50 MB of a wheel of 320 MB.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from packaging.specifiers import SpecifierSet
from packaging.version import Version

PYTHON = "3.12"  # that of docker/gpu.Dockerfile
PLATFORMS = ["manylinux_2_35_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
KEPT = {".py", ".pyi"}


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlreason" / "contracts"


def versions(name: str, allowed: SpecifierSet) -> list[str]:
    """Published releases within the bounds, oldest first. Raises `RuntimeError` if there are none."""
    told = _pip("index", "versions", name, "--python-version", PYTHON, *_platforms(), "--only-binary=:all:")
    if "Available versions" not in told:  # published as source alone
        told = _pip("index", "versions", name)
    line = re.search(r"Available versions: (.*)", told)
    found = sorted(map(Version, line[1].split(", ") if line else []))
    if within := [str(version) for version in found if version in allowed]:
        return within
    raise RuntimeError(f"no release of {name} within {allowed}")


def sources(name: str, version: str) -> Path:
    """Folder with a release's packages: the CUDA wheel for Linux, or the source distribution where no wheel is published."""
    folder = cache() / f"{name}-{version}"
    if folder.is_dir():
        return folder
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".partial-") as work:
        archive = _download(f"{name}=={version}", Path(work) / "archive")
        _unpack(archive, unpacked := Path(work) / "sources")
        unpacked.replace(folder)  # whole or not there
    return folder


def _download(pin: str, to: Path) -> Path:
    binary = ["--only-binary=:all:", "--python-version", PYTHON, *_platforms()]
    for options in (binary, []):
        _pip("download", "--no-deps", "-d", str(to), *options, pin)
        if archives := [*to.glob("*")]:
            return archives[0]
    raise RuntimeError(f"pip cannot download {pin}")


def _unpack(archive: Path, to: Path) -> None:
    to.mkdir()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(to, [name for name in wheel.namelist() if PurePosixPath(name).suffix in KEPT])
        return
    with tarfile.open(archive) as source:
        source.extractall(to, [m for m in source if m.isfile() and PurePosixPath(m.name).suffix in KEPT], filter="data")
    top = next(to.iterdir())  # NAME-VERSION
    for inner in [*top.iterdir()]:
        shutil.move(inner, to / inner.name)
    top.rmdir()


def _platforms() -> list[str]:
    return [argument for platform in PLATFORMS for argument in ("--platform", platform)]


def _pip(*arguments: str) -> str:
    """What pip prints; empty where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout if done.returncode == 0 else ""
