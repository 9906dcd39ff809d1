"""Runs for real: Ray, vLLM and DeepSpeed in their own processes, on models of under 2M parameters made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

# The smallest that vLLM takes on a CPU: heads of 32. Each family as users have it, tied embeddings where it ties them.
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "qwen2-tied": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen2-untied": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "num_key_value_heads": 1},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "tie_word_embeddings": False,
                "num_key_value_heads": 1, "head_dim": 32},
}  # fmt: skip
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"


def letters(task, text):
    """A user's own reward, which a random model earns in part: the share of letters in its answer."""
    return sum(c.isalpha() for c in text) / max(len(text), 1)


def surrogate(logp, batch, scale=1.0):
    """A user's own loss: PPO's surrogate without a clip."""
    return -scale * (logp - batch.old).exp() * batch.advantage


calls = 0


def nan_at(logp, batch, at=()):
    """A user's loss that is not a number in the steps of `at`, counted from 1 in this process."""
    global calls
    calls += 1
    return surrogate(logp, batch) * (float("nan") if calls in at else 1.0)


def make_model(family: str, path: Path) -> Path:
    """A whole Hugging Face directory with random weights, such as a user might bring."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlreason.model import directory

    made = directory({"from_config": SIZES | FAMILIES[family], "characters": CHARACTERS}, path)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(made)).save_pretrained(made)
    return Path(made)


@dataclass
class Run:
    """A command that has ended, and the run that it left behind."""

    out: Path
    code: int
    text: str
    seconds: float

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    @property
    def summary(self) -> dict:
        return json.loads((self.out / "summary.json").read_text())


def command(*arguments: str | Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "rlreason", *map(str, arguments)], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def rlreason(*arguments: str | Path, out: Path, timeout: float = 300, **environment: str) -> Run:
    started = time.monotonic()
    process = command(*arguments, **environment)
    try:
        text = process.communicate(timeout=timeout)[0]
    finally:
        process.kill()
    return Run(out, process.returncode, text, time.monotonic() - started)
