"""Answers that already exist, served as a rollout: fine-tuning is training on somebody else's samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlreason.config import Config
from rlreason.errors import RecipeError
from rlreason.loop import WeightSource
from rlreason.rewards.pool import Pool
from rlreason.tasks.prompts import fit
from rlreason.types import Group, Sample, Task


class Recorded:
    """A task's `response` (else its `answer`) is the one sample. Nothing is sampled, so weights are not needed.

    A demonstration is judged like any answer where the task has one to compare with, so that a log shows how good
    the data is; it is trained on whatever it earns.
    """

    def __init__(self, config: Config, tokenizer: Any, pool: Pool):
        if tokenizer.eos_token_id is None:
            raise RecipeError(["model: its tokenizer has no end-of-sequence token, so no answer could be seen to end"])
        self.config, self.tokenizer, self.pool, self.version = config, tokenizer, pool, 0

    async def sample(self, task: Task, n: int) -> Group:
        text = task.response if task.response is not None else task.answer or ""
        fitted = fit(self.tokenizer, task, self.config.tasks, self.config.tasks.max_prompt)
        if fitted is None:
            return Group(task, [])
        task, prompt = fitted
        answer = [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        limit = self.config.rollout.max_tokens
        tokens = np.array([*prompt, *answer[:limit]], np.int32)
        truncated = len(answer) > limit
        reward, parts, failures = await self.pool.judge(
            task, text, self.config.tasks.reward, length=min(len(answer), limit), limit=limit, truncated=truncated
        )
        sample = Sample(
            tokens=tokens,
            mask=np.arange(len(tokens)) >= len(prompt),
            logprobs=np.zeros(len(tokens), np.float32),
            text=text,
            version=self.version,
            truncated=truncated,
            reward=1.0 if reward is None else reward,
            parts=parts,
            failures=failures,
        )
        return Group(task, [sample])

    async def load(self, source: WeightSource, version: int) -> None:
        self.version = version
