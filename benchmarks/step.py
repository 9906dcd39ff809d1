"""What a step of rlreason costs, beside the same work without it.

    python benchmarks/step.py [key=value …]

Runs benchmarks/step.yaml, and then in one bare process the two things that no framework can do without: vLLM answers
the same prompts under the same seeds, and torch makes one optimizer step on exactly the tokens that came out of it.
Prints medians over the steps after the first four, and the ratio.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
WARM = 4  # steps that are left out: kernels and caches warm up


def bare(out: str) -> None:
    """Generation and training without Ray, DeepSpeed or a loop; prints one JSON line a step."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlreason.learner import token_logprobs
    from rlreason.recipe import load
    from rlreason.rollout import Rollout
    from rlreason.tasks import Tasks
    from rlreason.weights import Publisher

    config = load(HERE / "step.yaml", [*sys.argv[3:], f"out={out}"])
    path = str(Path(out) / "model")
    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learner.lr)
    engine = Rollout(config, path, "cpu")
    tasks = Tasks(config).stream()

    def learn(samples: list) -> None:
        """Sorted by length, in micro-batches of at most `learner.tokens` tokens; the plain policy gradient."""
        samples = sorted(samples, key=lambda s: len(s.tokens))
        total = sum(s.length for s in samples)
        optimizer.zero_grad()
        while samples:
            rows = max(1, min(len(samples), config.learner.tokens // len(samples[-1].tokens), 32))
            micro, samples = samples[-rows:], samples[:-rows]
            tokens = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s.tokens).long() for s in micro], batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s.mask).float() for s in micro], batch_first=True)
            logp = token_logprobs(model(input_ids=tokens, use_cache=False).logits, tokens)
            (-(logp * mask).sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    async def steps() -> None:
        await engine.load(Publisher("shm").publish(model.named_parameters()), 0)
        for step in range(config.loop.steps):
            engine.version = step  # the seeds are those of the framework's run
            mine = [next(tasks) for _ in range(config.loop.groups)]
            n = len(mine)
            began = time.perf_counter()
            groups = await asyncio.gather(*(engine.sample(t, config.loop.samples, (step, i, n)) for i, t in enumerate(mine)))
            generated = time.perf_counter()
            learn([s for g in groups for s in g.samples])
            learned = time.perf_counter()
            tokens = sum(s.length for g in groups for s in g.samples)
            print(json.dumps({"generate": generated - began, "learn": learned - generated, "tokens": tokens}), flush=True)

    asyncio.run(steps())


def main() -> None:
    from rlreason.placement import Placement, environment

    out = Path("runs/benchmark").absolute()
    shutil.rmtree(out, ignore_errors=True)
    overrides = sys.argv[1:]
    run = [sys.executable, "-m", "rlreason", "train", str(HERE / "step.yaml"), f"out={out}", *overrides]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]

    one_thread = os.environ | environment(Placement("cpu", False, "shm", 1, 1))
    again = [sys.executable, __file__, "--bare", str(out), *overrides]
    lines = subprocess.run(again, check=True, env=one_thread, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    limit = [json.loads(line) for line in lines if line.startswith("{")]

    assert [r["tokens"] for r in rows] == [r["tokens"] for r in limit], "not the same work"
    table = {
        "bare": {"generate": "generate", "learn": "learn"},
        "rlreason": {"generate": "time/rollout", "learn": "time/train", "weights": "time/sync", "log": "time/log"},
    }
    totals = {}
    for name, columns in table.items():
        source = (limit if name == "bare" else rows)[WARM:]
        parts = {label: median(r.get(key, 0) for r in source) for label, key in columns.items()}
        totals[name] = median(sum(r.get(key, 0) for key in columns.values()) for r in source)
        told = " + ".join(f"{label} {seconds:.3f}" for label, seconds in parts.items())
        print(f"{name:>9}: {totals[name]:.3f} s = {told}")
    print(f"   tokens: {median(r['tokens'] for r in rows[WARM:]):.0f} a step, medians of {len(rows) - WARM} steps")
    print(f"    ratio: {totals['rlreason'] / totals['bare']:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare(sys.argv[2])
    else:
        main()
