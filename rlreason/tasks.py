"""Tasks as a stream that can be taken up anywhere: its order is a function of (seed, position)."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

from rlreason.config import FIELDS, Config, TasksConfig
from rlreason.errors import RecipeError
from rlreason.rewards import find
from rlreason.types import Prompt, Task

# ---- generators: (number, options) -> Task, a pure function; the number decides everything ----


def sort(number: int, digits: int = 8, noise: float = 0.0) -> Task:
    """Sort the digits: `31024=` -> `01234`.

    A share `noise` of the demonstrations is wrong (two of the sorted digits change places), so that imitation alone
    cannot pass 1 - noise.
    """
    rng = random.Random(number)
    given = [rng.randrange(10) for _ in range(digits)]
    answer = "".join(map(str, sorted(given)))
    shown = list(answer)
    if rng.random() < noise:
        unequal = [i for i in range(digits - 1) if shown[i] != shown[i + 1]]
        if unequal:
            i = rng.choice(unequal)
            shown[i], shown[i + 1] = shown[i + 1], shown[i]
    return Task(f"sort-{number}", "".join(map(str, given)) + "=", answer, "".join(shown))


def add(number: int, digits: int = 2, noise: float = 0.0) -> Task:
    """Add two numbers, thinking aloud from the last digit on:

        47+85= -> <think>7+5=12 4+8+1=13 </think><answer>132</answer>

    A share `noise` of the demonstrations thinks right and then answers carelessly: the last digit is off by one.
    """
    rng = random.Random(number)
    low, high = 10 ** (digits - 1), 10**digits - 1
    a, b = rng.randint(low, high), rng.randint(low, high)
    thought, carry = "", 0
    for column in range(digits):
        x, y = a // 10**column % 10, b // 10**column % 10
        total = x + y + carry
        thought += f"{x}+{y}{'+1' if carry else ''}={total} "
        carry = total // 10
    shown = list(str(a + b))
    if rng.random() < noise:
        shown[-1] = str((int(shown[-1]) + rng.choice([1, 9])) % 10)
    response = f"<think>{thought}</think><answer>{''.join(shown)}</answer>"
    return Task(f"add-{number}", f"{a}+{b}=", str(a + b), response)


GENERATORS: dict[str, Callable[..., Task]] = {f.__name__: f for f in (sort, add)}

# ---- where tasks come from ----


class Tasks:
    """The training stream and the held-out tasks of a recipe; no prompt is in both."""

    def __init__(self, config: Config):
        self.config, self.seed = config.tasks, config.seed
        wanted = config.eval.tasks
        self.rows: list[Task] = []
        self.held_out: list[Task] = []
        if config.tasks.generate:
            self.make = generator(config.tasks)
            try:
                self.make(0, **config.tasks.options)
            except (TypeError, ValueError, LookupError) as error:
                raise RecipeError([f"tasks.options: {config.tasks.generate} does not take them: {error}"]) from None
            self.held_out = [t for _, t in zip(range(wanted), self._generated(held_out=True), strict=False)]
            return
        rows = self._templated(load(config.tasks.path, config.tasks))
        if config.eval.path:
            self.rows, self.held_out = rows, self._templated(load(config.eval.path, config.tasks))[:wanted]
        else:
            prompts = sorted({_text(t.prompt) for t in rows}, key=_hash)
            chosen = set(prompts[: min(wanted, len(prompts) // 2)])  # by prompt: a duplicate must not be on both sides
            self.rows = [t for t in rows if _text(t.prompt) not in chosen]
            self.held_out = [t for t in rows if _text(t.prompt) in chosen]
        if not self.rows:
            raise RecipeError([f"{config.tasks.path}: no task to train on"])

    def stream(self, start: int = 0) -> Iterator[Task]:
        """Tasks without end, from position `start` on. A file's come in a new order every epoch."""
        if self.config.generate:
            generated = self._generated(held_out=False)
            for _ in range(start):
                next(generated)
            yield from generated
        size, order, epoch = len(self.rows), [], -1
        for position in count(start):
            if position // size != epoch:
                epoch = position // size
                order = random.Random(f"{self.seed}/{epoch}").sample(range(size), size)
            task = self.rows[order[position % size]]
            yield replace(task, id=f"{task.id}@{epoch}") if epoch else task

    def _generated(self, held_out: bool) -> Iterator[Task]:
        for number in count(1_000_003 * self.seed):
            task = self.make(number, **self.config.options)
            if (_hash(_text(task.prompt)) % 8 == 0) == held_out:
                yield self._templated([task])[0]

    def _templated(self, tasks: list[Task]) -> list[Task]:
        around = self.config.template
        if not around:
            return tasks
        return [t if isinstance(t.prompt, list) else replace(t, prompt=around.replace("{prompt}", t.prompt)) for t in tasks]


def generator(config: TasksConfig) -> Callable[..., Task]:
    if config.generate in GENERATORS:
        return GENERATORS[config.generate]
    module, _, name = config.generate.rpartition(".")
    try:
        found: Callable[..., Task] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError([f"tasks.generate: {config.generate!r} is not one of {', '.join(GENERATORS)}, "
                           f"and cannot be imported: {error}"]) from None  # fmt: skip
    return found


def load(path: str, config: TasksConfig) -> list[Task]:
    """The tasks of a JSONL or Parquet file, of a folder of such files, or of a Hugging Face data set.

    Columns: `prompt` (text or chat messages), `answer`, and optionally `response` (a demonstration), `reward` (the
    name of a reward, a list of names, or weights by name) and `id`. `tasks.fields` renames.
    Raises `RecipeError` with every bad row's file and number.
    """
    rows = list(_rows(Path(path), path, config.split))
    names = {ours: config.fields.get(ours, ours) for ours in FIELDS}
    tasks, problems = [], []
    for where, row in rows:
        try:
            tasks.append(_task(where, row, names))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not rows:
        problems.append(f"{path}: is empty")
    if problems:
        rest = len(problems) - 20
        raise RecipeError(problems[:20] + ([f"… and {rest} more such rows"] if rest > 0 else []))
    return tasks


def _rows(path: Path, name: str, split: str) -> Iterator[tuple[str, Any]]:
    files = sorted(p for p in path.glob("**/*") if p.suffix in (".jsonl", ".parquet")) if path.is_dir() else [path]
    if path.exists() and not files:
        raise RecipeError([f"{path}: holds no .jsonl or .parquet file"])
    if not path.exists():
        if path.suffix in (".jsonl", ".parquet", ".json") or name.startswith((".", "/")) or name.count("/") > 1:
            raise RecipeError([f"{path}: there is no such file"])
        import datasets

        try:
            yield from ((f"{name}[{split}]:{i}", row) for i, row in enumerate(datasets.load_dataset(name, split=split)))
        except Exception as error:  # a hub tells its troubles in a dozen classes of several libraries
            raise RecipeError([f"tasks.path: {name} is no file, and not to be had as a data set: {error}"]) from error
        return
    for file in files:
        if file.suffix == ".parquet":
            import pyarrow.parquet as parquet

            try:
                table = parquet.read_table(file)
            except (OSError, ValueError) as error:
                raise RecipeError([f"{file}: cannot be read: {error}"]) from None
            yield from ((f"{file}:{i}", row) for i, row in enumerate(table.to_pylist(), 1))
            continue
        for i, line in enumerate(file.read_bytes().split(b"\n"), 1):
            if line.strip():
                try:
                    yield f"{file}:{i}", json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    yield f"{file}:{i}", error


def _task(where: str, row: Any, names: dict[str, str]) -> Task:
    if isinstance(row, Exception):
        raise ValueError(f"is not JSON: {row}")
    if not isinstance(row, dict):
        raise ValueError("is not an object with fields")
    prompt = row.get(names["prompt"])
    if isinstance(prompt, list):
        if not prompt or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in prompt):
            raise ValueError(f"{names['prompt']} is a list, but not of messages with role and content")
        prompt = [{k: str(v) for k, v in m.items() if v is not None} for m in prompt]
    elif not isinstance(prompt, str) or not prompt:
        raise ValueError(f"has no {names['prompt']}; it has {', '.join(map(str, row)) or 'nothing'}")
    answer, response, reward = (row.get(names[k]) for k in ("answer", "response", "reward"))
    if answer is None and response is None:
        raise ValueError(f"has neither {names['answer']} nor {names['response']}")
    if response is not None and not isinstance(response, str):
        raise ValueError(f"{names['response']} is not text")
    if isinstance(answer, float) and answer != answer:
        raise ValueError(f"{names['answer']} is NaN")
    if isinstance(reward, str):
        reward = {reward: 1.0}
    elif isinstance(reward, list) and all(isinstance(name, str) for name in reward):
        reward = dict.fromkeys(reward, 1.0)
    elif isinstance(reward, dict):  # Parquet fills in None for the names that only other rows have
        reward = {name: weight for name, weight in reward.items() if weight is not None}
    if reward is not None and not (isinstance(reward, dict) and all(isinstance(w, int | float) for w in reward.values())):
        raise ValueError(f"{names['reward']} is neither a name, nor a list of names, nor weights by name")
    for name in reward or ():
        if problem := find(name)[1]:
            raise ValueError(problem)
    text = None if answer is None else str(answer)
    return Task(str(row.get(names["id"], where)), prompt, text, response, reward or None)


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _hash(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass"))


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: chat messages through the tokenizer's template, plain text as it is."""
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt, add_special_tokens=True).input_ids
        if not ids:
            raise ValueError(f"the tokenizer knows no character of the prompt {prompt[:80]!r}")
        return ids
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tasks are chat messages, but the model's tokenizer has no chat template")
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)
