"""The limit of a step: its two halves in one process, each as its own library does it; and how fast this machine is.

    python benchmarks/bare.py RECIPE OUT stock|tuned [key=value …]

vLLM alone answers the prompts of the run in OUT under its seeds, and torch alone makes one optimizer step on exactly the
tokens that came out. No Ray, no DeepSpeed, no loop, no rewards. Prints one JSON line a step.

`stock`: both libraries as they come. `tuned`: with the options and the products that engines and learners here use.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM
from vllm import EngineArgs, LLMEngine, SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from rlreason.config import Config
from rlreason.gemm import product, speed_up
from rlreason.recipe import load
from rlreason.rollout import BLOCK, SEQUENCES
from rlreason.tasks import Tasks
from rlreason.tasks.prompts import fit

GPU = torch.cuda.is_available()
ROWS = 32  # of a micro-batch at most, on a CPU: more do not fit a core's caches, and are slower


class Generation:
    """vLLM, stepped until it has nothing to do."""

    def __init__(self, config: Config, model: str, tuned: bool):
        longest = config.tasks.max_prompt + config.rollout.max_tokens
        self.config, self.number = config, 0
        self.frugal = {"detokenize": False, "flat_logprobs": True} if tuned else {}
        device: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": SEQUENCES}
        if tuned:  # no prompt here fills a block of the cache
            device |= {"block_size": BLOCK, "enable_prefix_caching": False, "enable_chunked_prefill": False}
        if GPU:
            device = {"dtype": "bfloat16", "gpu_memory_utilization": 0.4}  # as the framework's, which leaves room for a learner
        self.engine = LLMEngine.from_engine_args(EngineArgs(
            model=model, load_format="safetensors", seed=config.seed, max_model_len=max(64, longest), disable_log_stats=True,
            logprobs_mode="processed_logprobs", **device,
        ))  # fmt: skip
        self.tokenizer = self.engine.get_tokenizer()

    def step(self, tasks: list[Any], step: int) -> list[tuple[list[int], list[int]]]:
        """Prompt and answer of every sample."""
        rollout = self.config.rollout
        for task in tasks:
            fitted = fit(self.tokenizer, task, self.config.tasks, self.config.tasks.max_prompt)
            assert fitted is not None
            seed = crc32(f"{self.config.seed}/{task.id}/{step}".encode())  # those of the framework's run
            params = SamplingParams(
                n=self.config.loop.samples, temperature=rollout.temperature, max_tokens=rollout.max_tokens, logprobs=0,
                seed=seed, output_kind=RequestOutputKind.FINAL_ONLY, **self.frugal,
            )  # fmt: skip
            self.number += 1
            prompt = TokensPrompt(prompt_token_ids=fitted[1], cache_salt=str(step))
            self.engine.add_request(str(self.number), prompt, params)
        found = []
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                found += [([*output.prompt_token_ids], [*answer.token_ids]) for answer in output.outputs]
        return found


class Training:
    """torch: micro-batches of samples of like length, a policy gradient, AdamW."""

    def __init__(self, config: Config, model: str, tuned: bool):
        torch.manual_seed(config.seed)
        self.tokens = config.learner.tokens
        self.device, dtype = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa").to(self.device)
        if tuned:
            speed_up(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learner.lr)

    def step(self, samples: list[tuple[list[int], list[int]]]) -> None:
        samples = sorted(samples, key=lambda sample: len(sample[0]) + len(sample[1]))
        total = sum(len(answer) for _, answer in samples)
        self.optimizer.zero_grad()
        while samples:
            rows = max(1, min(len(samples), self.tokens // sum(map(len, samples[-1])), len(samples) if GPU else ROWS))
            micro, samples = samples[-rows:], samples[:-rows]
            tokens = pad_sequence([torch.tensor(prompt + answer) for prompt, answer in micro], batch_first=True)
            mask = pad_sequence([torch.tensor([0.0] * len(p) + [1.0] * len(a)) for p, a in micro], batch_first=True)
            tokens, mask = tokens.to(self.device), mask.to(self.device)
            logits = self.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            logp = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
            ((logp * mask[:, 1:]).sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if GPU:
            torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """One core: float32 products of the sizes that a small model has, by the faster of two libraries, and copies of memory.
    Or a GPU: bfloat16, large ones. Medians of ten."""

    def seconds(work: Any) -> float:
        times = []
        for _ in range(10):
            began = time.perf_counter()
            work()
            if GPU:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return float(np.median(times))

    rows, inner, columns, number = (8192, 8192, 8192, 1 << 30) if GPU else (2048, 512, 512, 1 << 26)
    where: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16} if GPU else {}
    a, b = torch.randn(rows, inner, **where), torch.randn(columns, inner, **where)
    source, target = torch.zeros(number, **where), torch.empty(number, **where)
    return {
        "device": torch.cuda.get_device_name() if GPU else "",
        "gemm": 2 * rows * inner * columns / seconds(lambda: product(a, b)) / 1e9,
        "memcpy": source.nbytes / seconds(lambda: target.copy_(source)) / 1e9,
    }


def main(recipe: str, out: str, kind: str, overrides: list[str]) -> None:
    config = load(Path(recipe), [*overrides, f"out={out}"])
    model = str(Path(out) / "weights" / "last")  # with so small a learning rate these are those of all steps
    generation, training = Generation(config, model, kind == "tuned"), Training(config, model, kind == "tuned")
    tasks = Tasks(config).stream()
    gc.collect()
    gc.freeze()
    for step in range(config.loop.steps):
        asked = list(islice(tasks, config.loop.groups))
        began = time.perf_counter()
        samples = generation.step(asked, step)
        generated = time.perf_counter()
        training.step(samples)
        learned = time.perf_counter()
        tokens = sum(len(answer) for _, answer in samples)
        print(json.dumps({"generate": generated - began, "learn": learned - generated, "tokens": tokens}), flush=True)
    print(json.dumps(machine()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
