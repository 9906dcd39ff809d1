"""Check an installation on GPUs: every case in a process of its own, one table, one JSON file.

    python benchmarks/gpu_check [--list] [--cases a,b] [--out DIR] [--budget SECONDS] [--model DIR] [--device cpu]

Exits with 0, with 1 if a case failed or timed out, with 2 for a wrong option, and with 3 if there is no GPU.
--device cpu runs the same cases on tiny models without a GPU: it tests this script, not the GPU path.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # coin, limits and bare, of the benchmarks

from cases import CASES, budget  # noqa: E402
from runner import HEAD, Case, Outcome, attempt, closing, end_children, exit_code, read, row, run_all, write  # noqa: E402
from runner import cells as cells_of  # noqa: E402

NO_GPU, INTERRUPTED = 3, 130
ON_CPU = 3  # GPUs that a CPU stands in for
PROBE = 180  # seconds in which torch has to have said what GPUs there are


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description="Check an installation on GPUs.")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--cases", default="", metavar="a,b", help="run these alone")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), metavar="DIR", help="default: runs/gpu-check")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of all cases; default: 900 for one GPU")
    parser.add_argument("--model", default="", metavar="DIR", help="a real model, for the case canary-model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)  # one case, in this process
    asked = parser.parse_args(given)
    names = [case.name for case in CASES]
    if unknown := [name for name in filter(None, asked.cases.split(",")) if name not in names]:
        parser.error(f"--cases: unknown case {unknown[0]!r}; known are {', '.join(names)}")
    if "canary-model" in asked.cases.split(",") and not asked.model:
        parser.error("--cases: canary-model needs a model. Add --model DIR")
    return asked


def chosen(asked: argparse.Namespace) -> list[Case]:
    """The cases that were asked for; canary-model alone depends on an option."""
    wanted = [name for name in asked.cases.split(",") if name] or [case.name for case in CASES]
    return [case for case in CASES if case.name in wanted and (asked.model or case.name != "canary-model")]


def probe() -> dict[str, Any]:
    """What machine this is, from a process of its own: torch in this one would hold GPU memory."""
    command = [sys.executable, str(HERE / "machine.py")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE, check=False)
    except subprocess.TimeoutExpired:
        return {"gpus": [], "error": f"torch did not answer within {PROBE} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"gpus": [], "error": (done.stderr.strip().splitlines() or ["no output"])[-1]}


def visible(count: int) -> str:
    """CUDA_VISIBLE_DEVICES for a case that needs `count` GPUs: the first of those that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return ",".join((given.split(",") if given else [str(i) for i in range(count)])[:count])


def command(case: Case, asked: argparse.Namespace) -> list[str]:
    return [sys.executable, str(HERE), "--run", case.name, "--out", str(asked.out), "--device", asked.device,
            *(["--model", asked.model] if asked.model else [])]  # fmt: skip


def one(name: str, asked: argparse.Namespace) -> int:
    """A case, in this process. Writes its numbers also where it fails."""
    from checks import Place, check

    numbers: dict[str, Any] = {}
    error = ""
    try:
        check(name, Place(asked.device, asked.out, asked.out / name, asked.model, read(asked.out / "machine.json"), numbers))
    except Exception as failure:  # whatever a case runs into is its result
        traceback.print_exc()
        error = str(failure) or type(failure).__name__
    finally:
        end_children()
    (asked.out / name / "result.json").write_text(json.dumps({"numbers": numbers, "error": error}))
    return int(bool(error))


def main(given: list[str]) -> int:
    asked = arguments(given)
    asked.out = asked.out.absolute()
    if asked.list:
        print("\n".join(row(cells) for cells in [
            ("case", "GPUs", "seconds", "shows", "bar"), ("---",) * 5,
            *((case.name, str(case.gpus), f"{case.seconds:.0f}", case.shows, case.bar) for case in CASES),
        ]))  # fmt: skip
        return 0
    if asked.run:
        return one(asked.run, asked)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi's
    machine = probe()
    if asked.device == "cuda" and not machine["gpus"]:
        why = machine.get("error") or f"torch {machine.get('versions', {}).get('torch')} sees no CUDA device"
        print(
            f"gpu_check: no GPU: {why}. Run it on a machine with an NVIDIA GPU; --device cpu tests the script itself.",
            file=sys.stderr,
        )
        return NO_GPU
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "machine.json").write_text(json.dumps(machine))
    gpus = len(machine["gpus"]) if asked.device == "cuda" else ON_CPU
    names = (
        ", ".join(gpu["name"] for gpu in machine["gpus"]) if asked.device == "cuda" else "CPU: this tests the script, no GPU"
    )
    print(f"{names}; driver {machine.get('driver') or 'none'}; {asked.out}", flush=True)
    began, outcomes, by_name = time.monotonic(), [], {case.name: case for case in CASES}

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(row(cells_of(outcome, by_name[outcome.case])), flush=True)
        write(asked.out / "gpu-check.json", machine | {"device": asked.device}, outcomes, time.monotonic() - began)

    def run(case: Case) -> Outcome:
        environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": visible(case.gpus)} if asked.device == "cuda" else {})
        return attempt(case, command(case, asked), asked.out / case.name, environment)

    print(row(HEAD), row(("---",) * len(HEAD)), sep="\n", flush=True)
    seconds = asked.budget if asked.budget is not None else budget(gpus) if asked.device == "cuda" else float("inf")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the case in progress is killed as by Ctrl-C
    try:
        run_all(chosen(asked), gpus, seconds, run, report)
    except KeyboardInterrupt:
        print(f"interrupted; {closing(outcomes, time.monotonic() - began)}; {asked.out / 'gpu-check.json'}")
        return INTERRUPTED
    print(f"{closing(outcomes, time.monotonic() - began)}; {asked.out / 'gpu-check.json'}")
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
