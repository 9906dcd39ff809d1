"""Run cases in order, each in a process with a time limit, and report them as a table and as JSON. Loads no engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

PASSED, FAILED, TIMED_OUT, NOT_RUN = "passed", "failed", "timed out", "not run"
LEAST = 120.0  # seconds: the shortest time limit. A first start on a machine compiles kernels.
SLOWER = 4.0  # times the expected seconds after which a case is killed
TAIL = 40  # lines of a log that the report keeps
GRACE = 10.0  # seconds in which killed processes have to be gone
HEAD = ("case", "state", "seconds", "numbers", "bar")


@dataclass(frozen=True)
class Case:
    name: str
    gpus: int  # that it needs
    seconds: float  # expected, on one GPU of the H100 class
    shows: str
    bar: str

    @property
    def limit(self) -> float:
        """Seconds after which the case is killed."""
        return max(LEAST, SLOWER * self.seconds)


@dataclass
class Outcome:
    """A row of the table."""

    case: str
    state: str
    seconds: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)
    why: str = ""  # it failed, or was not run
    log: list[str] = field(default_factory=list)  # its last lines


def attempt(case: Case, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a case in `folder`. Its output goes to `folder/log`; it writes its numbers to `folder/result.json`.

    Never raises for what the case does: a crash, a hang and a missing program are outcomes. No process of it is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / "result.json", folder / "log"
    result.unlink(missing_ok=True)
    began = time.monotonic()
    state, why = FAILED, ""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(case.name, FAILED, why=f"{command[0]} could not be started: {error}")
        try:
            code = process.wait(case.limit)
            state = PASSED if code == 0 else FAILED
            why = "" if code == 0 else f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            state, why = TIMED_OUT, f"killed after its time limit of {case.limit:.0f} s"
        finally:
            end(process)
    seconds = time.monotonic() - began
    said = read(result)
    lines = log.read_text(errors="replace").splitlines()[-TAIL:]
    return Outcome(case.name, state, round(seconds, 1), said.get("numbers", {}), said.get("error", "") or why, lines)


def read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all that it started, sessions of their own included."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    with contextlib.suppress(ProcessLookupError):  # all of the group have ended
        os.killpg(process.pid, signal.SIGKILL)
    for one in below:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(below, timeout=GRACE)


def end_children() -> None:
    """Kill all that this process started and that still runs: a case that failed midway leaves a run behind."""
    below = psutil.Process().children(recursive=True)
    for one in below:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(below, timeout=GRACE)


def run_all(
    cases: Sequence[Case],
    gpus: int,
    budget: float,
    run: Callable[[Case], Outcome],
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run `cases` in order and report each. A case starts only if its GPUs are there and its expected time is left of `budget`
    seconds; otherwise it is reported as not run, and the next one is considered."""
    began, found = time.monotonic(), []
    for case in cases:
        left = budget - (time.monotonic() - began)
        if case.gpus > gpus:
            outcome = Outcome(case.name, NOT_RUN, why=f"needs {case.gpus} GPUs; there {'is' if gpus == 1 else 'are'} {gpus}")
        elif case.seconds > left:
            outcome = Outcome(
                case.name, NOT_RUN, why=f"expected to take {case.seconds:.0f} s; {max(left, 0):.0f} s of the budget are left"
            )
        else:
            outcome = run(case)
        found.append(outcome)
        report(outcome)
    return found


def number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def cells(outcome: Outcome, case: Case) -> tuple[str, ...]:
    """A row of the table: the first line of the reason stands before the numbers."""
    numbers = ", ".join(f"{name} {number(value)}" for name, value in outcome.numbers.items())
    why = outcome.why.strip().splitlines()[0] if outcome.why.strip() else ""
    return (
        case.name,
        outcome.state,
        "" if outcome.state == NOT_RUN else f"{outcome.seconds:.0f}",
        "; ".join(filter(None, (why, numbers))),
        case.bar,
    )


def row(columns: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in columns) + " |"


def closing(outcomes: Sequence[Outcome], seconds: float) -> str:
    """One line: how many cases ended in each state, and the total time."""
    states = [outcome.state for outcome in outcomes]
    counts = [f"{states.count(state)} {state}" for state in (PASSED, FAILED, TIMED_OUT, NOT_RUN) if state in states]
    return f"{', '.join(counts)}; {seconds:.0f} s in total"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """1 if a case failed. What was not run is listed, and is no failure."""
    return int(any(outcome.state in (FAILED, TIMED_OUT) for outcome in outcomes))


def write(path: Path, machine: Mapping[str, Any], outcomes: Sequence[Outcome], seconds: float) -> None:
    """The report for a bug: replaced as a whole after every case, so that an interrupted check leaves one too."""
    found = {"machine": dict(machine), "seconds": round(seconds, 1), "cases": [asdict(outcome) for outcome in outcomes]}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(path)
