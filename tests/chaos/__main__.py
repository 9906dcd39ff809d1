"""`make chaos`: every case of the catalogue, and one table of what was seen; `python tests/chaos 28 45` runs only these.

The table is written into docs/reliability.md; of some cases their rows in it, where `--page` stands before the numbers.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e"), str(ROOT)]
os.chdir(ROOT)

import checkpoints  # noqa: E402
import drivers  # noqa: E402
import engines  # noqa: E402
import inputs  # noqa: E402
import learners  # noqa: E402
import quickstart  # noqa: E402
import rewards  # noqa: E402
import security  # noqa: E402
import transports  # noqa: E402
from case import Case, Seen  # noqa: E402
from world import Running, shared  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- make chaos writes from here -->", "<!-- to here -->"
SECTIONS = [inputs, rewards, engines, learners, checkpoints, drivers, security, quickstart, transports]
GPU = {44: "out of memory in a backward pass", 46: "an NCCL time-out"}  # want a CUDA device


@dataclass
class Result:
    case: Case
    seen: Seen | None
    problem: str
    seconds: float


def run(case: Case) -> Result:
    folder, began = Path(tempfile.mkdtemp(prefix="rlreason-case-")), time.monotonic()
    try:
        seen, problem = case.check(folder), ""
    except Exception as error:  # a case that fails is a line of the table, and the others are run
        traceback.print_exc()
        seen, problem = None, f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    shutil.rmtree(folder, ignore_errors=True)
    result = Result(case, seen, problem, seconds)
    told = seen.text if seen else problem[:300]
    print(f"{case.number:>3} {'ok  ' if seen else 'FAIL'} {seconds:5.0f} s  {case.fault}: {told}", flush=True)
    return result


def cold_start() -> float:
    """Seconds from the command to the end of the first step of the run that faults are done to."""
    with tempfile.TemporaryDirectory() as folder:
        began, run = time.monotonic(), Running(Path(folder) / "run", "loop.steps=2")
        run.step(1)
        seconds = time.monotonic() - began
        run.whole(2)
    return seconds


def row(result: Result, cold: float) -> str:
    seen = result.seen or Seen(f"**not as expected**: {result.problem[:200]}")
    recovery = "" if seen.recovery is None else f"{seen.recovery:.1f} s ({seen.recovery / cold:.2f} ×)"
    cells = [str(result.case.number), result.case.fault, result.case.expected, seen.text, recovery, seen.lost]
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def key(line: str) -> str:
    """Which case a row is of: its number and its fault."""
    return "|".join(line.split(" | ")[:2])


def write(cases: list[Case], results: list[Result], seconds: float, cold: float) -> None:
    """Into the page, between its two marks. Of some cases their rows, where all the others are there."""
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    written, _, tail = rest.partition(END)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    new = {key(line): line for line in (row(result, cold) for result in results)}
    old = [line for line in written.splitlines() if line.startswith("| ") and not line.startswith("| # ")]
    rows = [line for line in old if key(line) not in new] + [*new.values()]
    if len(rows) != len(cases):
        print(f"the page is left as it is: it would have {len(rows)} rows of {len(cases)}")
        return
    rows.sort(key=lambda line: int(line.split(" | ")[0].strip("| ")))
    held = sum("**not as expected**" not in line for line in rows)
    if len(results) == len(cases):
        told = (f"{held} of {len(cases)} cases as expected, in {seconds / 60:.0f} minutes on {os.cpu_count()} cores, "
                f"Python {platform.python_version()}, commit {commit or 'unknown'}. Times to recover are from the fault "
                f"to the next useful answer or step, and as multiples of a cold start ({cold:.1f} s from the command to the "
                "first step).\n")  # fmt: skip
        told += "Not in it, for they want a CUDA device: " + ", ".join(f"{what} ({n})" for n, what in GPU.items()) + "."
    else:
        again = ", ".join(sorted({str(result.case.number) for result in results}, key=int))
        told = written.partition("\n| #")[0].strip()
        told += (f"\nRun again, or for the first time, at commit {commit or 'unknown'} (a cold start took {cold:.1f} s): "
                 f"{again}; with them {held} of {len(cases)} as expected.")  # fmt: skip
    top = ["| # | fault | expected | seen | time to recover | work lost |", "|---|---|---|---|---|---|"]
    PAGE.write_text("\n".join([head + BEGIN, "", told, "", *top, *rows, "", END]) + tail, encoding="utf-8")


def main(chosen: list[int], page: bool) -> int:
    cases = sorted((case for section in SECTIONS for case in section.CASES), key=lambda case: case.number)
    began = time.monotonic()
    shared()
    cold = cold_start() if page else 1.0
    results = [run(case) for case in cases if not chosen or case.number in chosen]
    shutil.rmtree(shared(), ignore_errors=True)
    if page:
        write(cases, results, time.monotonic() - began, cold)
    failed = [result for result in results if not result.seen]
    print(f"{len(results) - len(failed)} of {len(results)} cases as expected")
    return bool(failed)


if __name__ == "__main__":
    numbers = [int(number) for number in sys.argv[1:] if number != "--page"]
    sys.exit(main(numbers, not numbers or "--page" in sys.argv))
