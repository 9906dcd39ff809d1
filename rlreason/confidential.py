"""Secrets do not stand in recipes: recipes are written down, sent to W&B and handed on with models. Knows no engine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from rlreason.config import Config

NAMED = re.compile(r"(?:.*_)?(?:key|token|secret|password|passwd|credentials?|authorization)", re.IGNORECASE)
# OpenAI and those that do as they do, Anthropic, Hugging Face, GitHub, AWS, Google, Slack, W&B; a private key; a bearer.
SHAPED = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abp]-[\w-]{10,}"
    r"|wandb_v\d_\w{16,})|-----BEGIN [A-Z ]*PRIVATE KEY|\bBearer\s+\S{8,}|://[^/\s:@]+:[^/\s@]+@"
)
SHORT = 8  # characters: what is shorter is no secret, and stands in other values by chance
INSTEAD = {
    "rewards.options.judge": "say key_file, the path of a file that holds it, or set OPENAI_API_KEY in the environment",
    "sample.teacher": "say key_file, the path of a file that holds it, or set OPENAI_API_KEY in the environment",
}
ELSE = "let the recipe name a file or an environment variable, and your function read it"


def secrets(config: Config, environment: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str]]:
    """(key, problem) for every option whose value is a secret, by its name, by its shape, or because a variable of the
    environment that is one holds the same. The problem does not tell the value."""
    held = {name: value for name, value in environment.items() if NAMED.fullmatch(name) and len(value) >= SHORT}
    for key, value in _texts(OmegaConf.to_container(OmegaConf.structured(config))):
        if why := _why(key, value, held):
            instead = next((what for place, what in INSTEAD.items() if key.startswith(f"{place}.")), ELSE)
            yield key, f"{why}, and what a recipe says is written down for all to read; {instead}"


def _why(key: str, value: str, held: Mapping[str, str]) -> str:
    """What makes `value` look like a secret; "" if nothing does."""
    if NAMED.fullmatch(key.rpartition(".")[2]) and len(value) >= SHORT:
        return "holds a secret, by its name"
    if SHAPED.search(value):
        return "holds what looks like a secret"
    if names := [name for name, secret in held.items() if secret in value]:
        return f"holds what the environment has in {names[0]}"
    return ""


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a recipe, with its dotted key; lists count as one option."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
