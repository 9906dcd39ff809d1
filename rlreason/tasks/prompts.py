"""A prompt as token ids: chat templates, and what becomes of a prompt that is too long. Knows no engine."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from rlreason.config import TasksConfig
from rlreason.errors import RecipeError, RolloutError
from rlreason.types import Prompt, Task

GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # a tag that transformers adds to Jinja


def dressed(prompt: Prompt, config: TasksConfig) -> Prompt:
    """A task's prompt with what the recipe puts around it: `template` around plain text, `system` before all."""
    if isinstance(prompt, str) and config.template:
        prompt = config.template.replace("{prompt}", prompt)
    if not config.system:
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": config.system}, *messages]


@cache
def chat_template(given: str) -> str | None:
    """The Jinja text that `tasks.chat_template` is, or names a file of; `None`: the tokenizer's own.

    Raises `RecipeError` where there is no such file, or no such Jinja.
    """
    if not given:
        return None
    text = given
    if "{" not in given:
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                [f"tasks.chat_template: {given} is neither Jinja text (no {{ in it) nor a file: {error}"]
            ) from None
    import jinja2

    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", text))
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError([f"tasks.chat_template: line {error.lineno}: {error.message}"]) from None
    return text


def encode(tokenizer: Any, prompt: Prompt, template: str | None = None) -> list[int]:
    """Token ids of a prompt: chat messages through `template` (else the tokenizer's own), plain text as it is."""
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt, add_special_tokens=True).input_ids
        if not ids:
            raise ValueError(f"the tokenizer knows no character of the prompt {prompt[:80]!r}")
        return ids
    if not template and not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tasks are chat messages, but the model's tokenizer has no chat template; "
                         "say tasks.chat_template")  # fmt: skip
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, chat_template=template)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def fit(tokenizer: Any, task: Task, config: TasksConfig, longest: int) -> tuple[Task, list[int]] | None:
    """`task` as it is asked, and its prompt's token ids, at most `longest`; `None` if it is left out.

    A longer prompt is dealt with as `tasks.overlong` says. `truncate` cuts its beginning and the task comes back with
    what is left: plain text keeps its last tokens (and the beginning-of-sequence token, where it has one); of chat
    messages the longest user's loses its beginning, so that the template's own text stays whole. Where even that does
    not help, the task is left out. Raises `RolloutError` where `tasks.overlong` is `error`.
    """
    template = chat_template(config.chat_template)
    ids = encode(tokenizer, task.prompt, template)
    if len(ids) <= longest:
        return task, ids
    if config.overlong == "error":
        raise RolloutError(f"task {task.id}: its prompt has {len(ids)} tokens, and at most {longest} may be asked "
                           f"(tasks.max_prompt: {config.max_prompt}); tasks.overlong: error ends the run for it")  # fmt: skip
    if config.overlong == "drop":
        return None
    if isinstance(task.prompt, str):
        head = [i for i in ids[:1] if i == tokenizer.bos_token_id]
        kept = ids[len(ids) - longest + len(head) :]
        return (replace(task, prompt=tokenizer.decode(kept)), head + kept) if kept else None
    return _shortened(tokenizer, task, template, longest)


def _shortened(tokenizer: Any, task: Task, template: str | None, longest: int) -> tuple[Task, list[int]] | None:
    """By bisection: the fewest characters off the longest user message with which the prompt fits."""
    assert isinstance(task.prompt, list)
    users = [m for m in task.prompt if m["role"] == "user"] or task.prompt
    victim = max(users, key=lambda m: len(m["content"]))
    found = None
    low, high = 1, len(victim["content"]) - 1  # at least one character of it stays
    while low <= high:
        cut = (low + high) // 2
        prompt = [m | {"content": m["content"][cut:]} if m is victim else m for m in task.prompt]
        ids = encode(tokenizer, prompt, template)
        if len(ids) <= longest:
            found, high = (replace(task, prompt=prompt), ids), cut - 1
        else:
            low = cut + 1
    return found
