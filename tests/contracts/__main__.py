"""`make contracts`: the contracts against every release that pyproject.toml allows, from its CUDA wheel. Needs no GPU.

Downloads 1.6 GB the first time and keeps 250 MB of sources (see `wheels`). `--install-lock` also installs
requirements/gpu.lock into a temporary environment of Python 3.12 (9 GB, not kept), runs `pip check` there, and the fake device
on its CUDA build of torch. `--also vllm==0.33.0` looks at a release beyond the bounds; its misses are shown and not counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:1] = [str(HERE.parent), str(ROOT)]

from packaging.requirements import Requirement  # noqa: E402

from contracts import lock, wheels  # noqa: E402
from contracts.check import subclasses, unmet  # noqa: E402
from contracts.sources import Sources  # noqa: E402
from contracts.table import TABLE  # noqa: E402

EVERY = ("vllm", "deepspeed")
ENDS = ("ray",)  # the oldest allowed and the newest: two months a release, 80 MB each


def releases() -> list[str]:
    """Pins of all that is looked at; of torch the locked one alone, since every allowed vLLM pins it."""
    allowed = {
        requirement.name: requirement.specifier for requirement in map(Requirement, lock.bounds(ROOT / "pyproject.toml", "gpu"))
    }
    found = []
    for name in (*EVERY, *ENDS):
        versions = wheels.versions(name, allowed[name])
        found += [
            f"{name}=={version}" for version in (versions if name in EVERY else dict.fromkeys([versions[0], versions[-1]]))
        ]
    torch = lock.pins((ROOT / "requirements" / "gpu.lock").read_text())["torch"]
    return [*found, f"torch=={torch}"]


def check(pin: str) -> list[str]:
    """Fetch a release, print a line of the table, and return its misses."""
    began = time.monotonic()
    name, version = pin.split("==")
    folder = wheels.sources(name, version)
    fetched = time.monotonic()
    sources = Sources(folder)
    contracts = [contract for contract in TABLE if contract.library == name]
    misses = unmet(contracts, sources) + (
        subclasses(ROOT / "rlreason", sources) if sources.holds(name) else [f"{name}: no sources"]
    )
    seconds = f"{fetched - began:>9.1f} {time.monotonic() - fetched:>8.1f}"
    print(f"{name:<10} {version:<10} {len(contracts):>9} {len(misses):>6} {seconds}", flush=True)
    return misses


def device(python: str) -> bool:
    """Run the fake device by an interpreter."""
    print(f"\nfake device, {python}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([python, str(HERE / "device.py")], env=environment, cwd=ROOT).returncode == 0


def install_lock(python: str) -> bool:
    """Install gpu.lock, let pip check it, and run the fake device there."""
    with tempfile.TemporaryDirectory(prefix="rlreason-gpu-lock-") as folder:
        print(f"\ngpu.lock into {folder}", flush=True)
        inside = f"{folder}/venv/bin/python"
        pip = [inside, "-m", "pip", "--disable-pip-version-check"]
        began = time.monotonic()
        for command in (
            [python, "-m", "venv", f"{folder}/venv"],
            [*pip, "install", "-qq", "--no-cache-dir", "--no-deps", "-r", str(ROOT / "requirements" / "gpu.lock")],
            [*pip, "check"],
        ):
            if code := subprocess.run(command, cwd=ROOT).returncode:
                print(f"{' '.join(command)} exited with {code}")
                return False
        print(f"installed and checked in {time.monotonic() - began:.0f} s", flush=True)
        return device(inside)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME==VERSION", help="releases beyond the bounds")
    parser.add_argument("--no-device", action="store_true", help="leave the fake device out")
    parser.add_argument("--install-lock", action="store_true", help="install requirements/gpu.lock and check it")
    parser.add_argument("--python", default=os.environ.get("PYTHON_GPU", "python3.12"), help="for --install-lock")
    asked = parser.parse_args()
    print(f"{'library':<10} {'version':<10} {'contracts':>9} {'misses':>6} {'fetch, s':>9} {'check, s':>8}")
    failures = {pin: misses for pin in releases() if (misses := check(pin))}
    beyond = {pin: misses for pin in asked.also if (misses := check(pin))}
    for title, found in (("", failures), (" (beyond the bounds)", beyond)):
        for pin, misses in found.items():
            print(f"\n{pin}{title}", *misses, sep="\n  ")
    sound = [not failures, asked.no_device or device(sys.executable), not asked.install_lock or install_lock(asked.python)]
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
