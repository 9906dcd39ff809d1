"""Time to accuracy: the quickstart's reinforcement by rlreason and by TRL, from the same weights, on the same tasks.

    python benchmarks/accuracy.py RUN PYTHON [key=value …]

RUN is a finished run of recipes/quickstart.yaml, PYTHON that of an environment with TRL (trl_quickstart.py). One after the
other; prints how many seconds after its command each had answered so many of the last three steps' tasks rightly.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "quickstart" / "grpo.yaml"
MARKS, MEAN = (0.8, 0.9, 0.95), 3


class Step(NamedTuple):
    seconds: float  # since the command, when its answers were judged (TRL) or when it was logged (rlreason)
    right: float


def ours(run: Path, overrides: list[str]) -> list[Step]:
    out, found = run / "accuracy", list[Step]()
    command = [sys.executable, "-m", "rlreason", "train", str(RECIPE), f"model={run / 'cold' / 'weights' / 'last'}",
               f"out={out}", "eval.tasks=0", "--fresh", *overrides]  # fmt: skip
    began, metrics = time.monotonic(), out / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
            found += [Step(time.monotonic() - began, json.loads(line)["reward/exact"]) for line in lines[len(found) :]]
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return found


def theirs(run: Path, python: str, overrides: list[str]) -> list[Step]:
    command = [python, str(HERE / "trl_quickstart.py"), str(run), *overrides]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    lines = [json.loads(line) for line in told.splitlines() if line.startswith('{"seconds"')]
    return [Step(line["seconds"], line["right"]) for line in lines if "right" in line]


def reached(steps: list[Step], mark: float) -> str:
    for i in range(MEAN, len(steps) + 1):
        if sum(step.right for step in steps[i - MEAN : i]) >= mark * MEAN:
            return f"{steps[i - 1].seconds:.1f} s ({i} steps)"
    return "never"


def main(run: Path, python: str, overrides: list[str]) -> None:
    print("| | first step | a step | all steps |", " | ".join(f"{mark:.0%}" for mark in MARKS), "|")
    for name, steps in (("rlreason", ours(run, overrides)), ("TRL", theirs(run, python, overrides))):
        each = median(b.seconds - a.seconds for a, b in pairwise(steps))
        marks = " | ".join(reached(steps, mark) for mark in MARKS)
        print(f"| {name} | {steps[0].seconds:.1f} s | {each:.2f} s | {steps[-1].seconds:.1f} s | {marks} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
