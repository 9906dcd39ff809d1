"""A run of the program, watched from outside: its steps, its events, its processes, and the GPU's memory meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECIPE = "recipes/debug.yaml"
MOMENT = 0.1  # seconds between two looks at the files of a run
SAMPLED = 0.5  # seconds between two looks at the GPU's memory


def used() -> float | None:
    """Bytes of the first visible GPU that are in use, whoever uses them; None if the driver does not say."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", first]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return float(said.strip()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


class Run:
    """`rlreason train` in `out`, going on. What it prints goes where this process prints."""

    def __init__(self, out: Path, device: str, *overrides: str):
        self.out, self.gpu = out, device == "cuda"
        self.before = used() if self.gpu else None
        self.peak = 0.0  # bytes
        self.after_steps: dict[int, float] = {}  # bytes in use soon after a step, when the engine answers again
        self.looked = 0.0
        paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # filling and coin
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlreason", "train", RECIPE, f"out={out}", f"device={device}", *overrides, "--fresh"],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip

    def rows(self, name: str = "metrics") -> list[dict[str, Any]]:
        path = self.out / f"{name}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def events(self, event: str, **details: object) -> list[dict[str, Any]]:
        return [row for row in self.rows("events") if row["event"] == event and details.items() <= row.items()]

    def look(self) -> None:
        """Sample the GPU's memory, every half second and after each step."""
        if not self.gpu:
            return
        steps = len(self.rows())
        if steps not in self.after_steps or time.monotonic() - self.looked > SAMPLED:
            self.looked = time.monotonic()
            if (now := used()) is not None:
                self.peak = max(self.peak, now)
                self.after_steps.setdefault(steps, now)

    def until(self, what: Callable[[], object]) -> None:
        """Wait, as long as the time limit of the case allows. Raises `AssertionError` if the run ends before."""
        while not what():
            assert self.process.poll() is None, f"the run ended with exit code {self.process.returncode} before it should"
            self.look()
            time.sleep(MOMENT)

    def pid(self, name: str) -> int:
        """Of an actor: the process of Ray's that writes this log."""
        log = str((self.out / "logs" / f"{name}.log").resolve())
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/fd/1") == log and process.cmdline()[0].startswith("ray::"):
                    return process.pid
            except (OSError, IndexError, psutil.Error):
                continue
        raise AssertionError(f"no process writes {log}")

    def workers(self, name: str) -> list[psutil.Process]:
        """The processes that vLLM started for a tensor parallel engine."""
        below = psutil.Process(self.pid(name)).children(recursive=True)
        return [p for p in below if any("Worker" in part for part in [p.name(), *p.cmdline()])]

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def end(self) -> None:
        """Wait for the end. Raises `AssertionError` if it is not a good one."""
        while self.process.poll() is None:
            self.look()
            time.sleep(MOMENT)
        assert self.process.returncode == 0, f"the run ended with exit code {self.process.returncode}"

    def left(self, patience: float = 10.0) -> float | None:
        """Bytes of the GPU that are still in use after the run, and were not before it."""
        deadline = time.monotonic() + patience
        while True:
            now = used() if self.gpu else None
            if now is None or self.before is None:
                return None
            if now - self.before < 0.1 * 2**30 or time.monotonic() > deadline:
                return now - self.before
            time.sleep(SAMPLED)
