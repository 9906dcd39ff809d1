"""What a step of rlreason costs, beside the limit: the same work by vLLM and torch alone, in one process.

    python benchmarks [CASE …]

Every case is two runs of benchmarks/step.yaml, and between them the bare work on the same tokens (bare.py): by the libraries as
they come, and with the options that are used here. Prints a line a case, medians over the steps after the first four;
without CASE all of them, and writes the table into benchmarks/RESULTS.md. They run on the CPU; gpu_check is for GPUs.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from limits import Model, mfu, model_of, peak

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "step.yaml"
PAGE = HERE / "RESULTS.md"
BEGIN, END = "<!-- make bench writes from here -->", "<!-- to here -->"
WARM = 4  # steps that are left out: kernels and caches warm up
LOOK, TIMED = 0.25, 5.0  # seconds between two looks at the memory, before and after the first step; one is 0.1 s of a core

TEN_MILLION = [
    "model.from_config.hidden_size=320", "model.from_config.intermediate_size=1280", "model.from_config.num_hidden_layers=6",
    "model.from_config.num_attention_heads=5", "model.from_config.num_key_value_heads=5",
]  # fmt: skip
TWO = ["rollout.workers=2", "learner.workers=2"]
LONG = ["rollout.max_tokens=512", "model.from_config.max_position_embeddings=1024", "learner.tokens=4096"]


@dataclass
class Case:
    name: str
    overrides: list[str] = field(default_factory=list)
    bound: float | None = None  # what the ratio may be, as the project has set itself
    of: str = "sum"  # of the limit's two halves, or the larger of them: "max"

    @property
    def work(self) -> list[str]:
        """What the limit has to do."""
        return [o for o in self.overrides if not o.startswith(("rollout.workers", "learner.workers", "loop.max_lag"))]


CASES = {
    "1m": Case("1M, one of each", bound=1.15),
    "1m-two": Case("1M, two of each", TWO, 0.65),
    "1m-lag1": Case("1M, one of each, max_lag 1", ["loop.max_lag=1"], 1.15, "max"),
    "1m-lag2": Case("1M, one of each, max_lag 2", ["loop.max_lag=2"], 1.15, "max"),
    "short": Case("1M, answers of 4 tokens", ["rollout.max_tokens=4"]),
    "spread": Case("1M, answers of 1 to 512 tokens", LONG),
    "spread-lag1": Case("1M, answers of 1 to 512 tokens, max_lag 1", [*LONG, "loop.max_lag=1"], 1.15, "max"),
    "10m": Case("10M, one of each", TEN_MILLION, 1.10),
    "10m-two": Case("10M, two of each", [*TEN_MILLION, *TWO], 0.65),
    "10m-lag1": Case("10M, one of each, max_lag 1", [*TEN_MILLION, "loop.max_lag=1"], 1.15, "max"),
}


@dataclass
class Run:
    rows: list[dict[str, Any]]  # metrics.jsonl
    start: float  # seconds from the command to the end of its first step
    memory: float  # bytes, the most that all its processes held at a time: their proportional set sizes


def run(out: Path, overrides: list[str]) -> Run:
    """A run of the recipe, watched from outside."""
    command = [sys.executable, "-m", "rlreason", "train", str(RECIPE), f"out={out}", *overrides]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])}  # coin.py
    began, start, memory, looked = time.monotonic(), 0.0, 0.0, 0.0
    with (out.parent / "told").open("w+") as told:
        process = subprocess.Popen(command, env=paths, stdout=told, stderr=subprocess.STDOUT)
        while process.poll() is None:
            metrics = out / "metrics.jsonl"
            if not start and metrics.exists() and metrics.stat().st_size:
                start = time.monotonic() - began
            if time.monotonic() - looked > (TIMED if start else LOOK):
                memory, looked = max(memory, held(process.pid)), time.monotonic()
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {told.seek(0) or told.read()[-3000:]}")
    return Run([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], start, memory)


def held(pid: int) -> float:
    """Bytes of a process and all below it; what several share counts once."""
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total


def bare(out: Path, kind: str, overrides: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The steps of the limit of this kind, and what the machine can do."""
    from rlreason.placement import Placement, environment

    one_thread = os.environ | environment(Placement("cpu", False, "shm", 1, 1))
    command = [sys.executable, str(HERE / "bare.py"), str(RECIPE), str(out), kind, *overrides]
    lines = subprocess.run(command, check=True, env=one_thread, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    *steps, machine = [json.loads(line) for line in lines if line.startswith("{")]
    return steps, machine


PHASES = {"generate": "time/rollout", "learn": "time/train", "weights": "time/sync", "log": "time/log"}


def measure(case: Case) -> dict[str, Any]:
    """Two runs, and the limit between them: what else this machine does, and how fast it is today, is the same for both."""
    folder = Path(tempfile.mkdtemp(prefix="rlreason-bench-"))
    try:
        runs = [run(folder / "first", case.overrides)]
        steps, machine = bare(folder / "first", "stock", case.work)
        tuned, _ = bare(folder / "first", "tuned", case.work)
        model = folder / "first" / "weights" / "last"
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        about = json.loads((model / "config.json").read_text())
        runs.append(run(folder / "second", case.overrides))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [row for one in runs for row in one.rows[WARM:]]
    tokens = median(row["tokens"] for row in rows)
    limit, best = ({half: median(s[half] / s["tokens"] for s in each[WARM:]) * tokens for half in ("generate", "learn")}
                   for each in (steps, tuned))  # fmt: skip
    seconds = sorted(sum(row.get(key, 0.0) for key in PHASES.values()) for row in rows)
    bound, least = (sum(each.values()) if case.of == "sum" else max(each.values()) for each in (limit, best))
    phases = {name: median(row.get(key, 0.0) for row in rows) for name, key in PHASES.items()}
    dense = model_of(about, size, 4)
    return {
        "case": case, "tokens": tokens, "limit": limit, "best": best,
        "step": median(seconds), "least": seconds[0], "most": seconds[-1], "phases": phases,
        "ratio": median(seconds) / bound, "above": median(seconds) / least,
        "padding": median(row["padding"] for row in rows),
        "start": max(one.start for one in runs), "memory": max(one.memory for one in runs), "machine": machine,
        "steps": len(rows), "size": size, "share": share(case, dense, tokens, phases, machine),
    }  # fmt: skip


def share(case: Case, model: Model, tokens: float, phases: dict[str, float], machine: dict[str, Any]) -> str:
    """How near training is to what the cores can do. Prompts are not counted: they are a few tokens each."""
    measured = machine["gemm"] * 1e9 * (2 if TWO[1] in case.overrides else 1)
    return f"{mfu(model, tokens, phases['learn'], peak(machine['device'], measured)):.2f}"


HEAD = ["case", "tokens a step", "limit: generate + learn", "step (least – most)", "generate, learn, weights, log", "ratio",
        "aim", "tuned limit, and the ratio to it", "MFU", "weights", "padding", "start-up", "memory"]  # fmt: skip


def cells(found: dict[str, Any]) -> list[str]:
    case, limit, best = found["case"], found["limit"], found["best"]
    total = sum(limit.values())
    return [
        case.name,
        f"{found['tokens']:.0f}",
        f"{limit['generate']:.3f} + {limit['learn']:.3f} = {total:.3f} s",
        f"{found['step']:.3f} s ({found['least']:.3f} – {found['most']:.3f})",
        ", ".join(f"{seconds:.3f}" for seconds in found["phases"].values()),
        f"{found['ratio']:.2f} of the {'sum' if case.of == 'sum' else 'larger'}",
        f"{case.bound:.2f}" if case.bound else "",
        f"{best['generate']:.3f} + {best['learn']:.3f} s, {found['above']:.2f}",
        found["share"],
        f"{found['size'] / found['phases']['weights'] / 1e9:.2f} of {found['machine']['memcpy']:.0f} GB/s",
        f"{100 * found['padding']:.1f} %",
        f"{found['start']:.1f} s",
        f"{found['memory'] / 1e9:.2f} GB",
    ]


def write(results: list[dict[str, Any]]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    machine, memory = results[0]["machine"], psutil.virtual_memory().total / 2**30
    about = (f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB; {machine['gemm']:.0f} GFLOP/s in float32 "
             f"products of 2048 × 512 × 512 on one core, {machine['memcpy']:.1f} GB/s of memory copied. Python "
             f"{platform.python_version()}, commit {asked.stdout.strip() or 'unknown'}. Medians of {results[0]['steps']} "
             "steps. MFU: of those products on all cores.")  # fmt: skip
    rows = ["| " + " | ".join(row) + " |" for row in [HEAD, ["---"] * len(HEAD), *map(cells, results)]]
    PAGE.write_text("\n".join([head + BEGIN, "", about, "", *rows, "", END]) + tail, encoding="utf-8")


def main(chosen: list[str]) -> None:
    if unknown := [name for name in chosen if name not in CASES]:
        raise SystemExit(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}")
    results = []
    for name in chosen or CASES:
        results.append(found := measure(CASES[name]))
        print(" | ".join(cells(found)), flush=True)
    if not chosen:
        write(results)


if __name__ == "__main__":
    main(sys.argv[1:])
