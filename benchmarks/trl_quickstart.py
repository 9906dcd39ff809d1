"""The quickstart's reinforcement by TRL, from the same weights and on the same tasks: how long until it is as good?

    python benchmarks/trl_quickstart.py RUN [key=value …]

RUN is a finished run of recipes/quickstart.yaml. Wants an environment with TRL (1.16 was used), which rlreason does not need.
Prints a JSON line per batch of answers: seconds since the command, and the share of them that is right.
"""

from __future__ import annotations

import time

BEGAN = time.monotonic()

import json  # noqa: E402
import sys  # noqa: E402
from itertools import islice  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from rlreason.recipe import load  # noqa: E402
from rlreason.rewards.answer import exact  # noqa: E402
from rlreason.tasks import Tasks  # noqa: E402
from rlreason.types import Task  # noqa: E402

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "quickstart" / "grpo.yaml"


def main(run: Path, overrides: list[str]) -> None:
    config = load(RECIPE, [f"model={run / 'cold' / 'weights' / 'last'}", f"out={run / 'trl'}", *overrides])
    loop, learner, algorithm = config.loop, config.learner, config.algorithm
    tasks = [*islice(Tasks(config).stream(), loop.steps * loop.groups)]
    size, each = loop.groups * loop.samples, learner.updates

    def right(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        found = [float(exact(Task("", "", answer=known), text) or 0.0) for text, known in zip(completions, answer, strict=True)]
        print(json.dumps({"seconds": time.monotonic() - BEGAN, "right": sum(found) / len(found)}), flush=True)
        return found

    torch.set_num_threads(2)
    rate = 64  # samples of a forward and backward pass
    arguments = GRPOConfig(
        output_dir=str(run / "trl"), use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1000,
        disable_tqdm=True, seed=config.seed, max_steps=loop.steps * each, learning_rate=learner.lr, lr_scheduler_type="cosine",
        warmup_steps=learner.warmup * each, adam_beta2=0.95, max_grad_norm=1.0, num_generations=loop.samples,
        per_device_train_batch_size=rate, gradient_accumulation_steps=size // each // rate, steps_per_generation=size // rate,
        max_completion_length=config.rollout.max_tokens, temperature=1.0, beta=0.0, loss_type="dapo", scale_rewards="group",
        epsilon=0.2, epsilon_high=0.28, shuffle_dataset=False, gradient_checkpointing=False,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(config.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32),
        reward_funcs=right,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": task.prompt, "answer": task.answer} for task in tasks]),
        processing_class=tokenizer,
    )
    trainer.train()
    print(json.dumps({"seconds": time.monotonic() - BEGAN, "loss": algorithm.loss}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
