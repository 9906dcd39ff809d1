"""Tasks as a stream that can be taken up anywhere: its order is a function of (seed, position)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

from rlreason.config import FIELDS, Config, TasksConfig
from rlreason.errors import RecipeError, short
from rlreason.rewards import find
from rlreason.tasks import mixture
from rlreason.tasks.generators import GENERATORS, add, generator, sort
from rlreason.tasks.prompts import chat_template, dressed, encode
from rlreason.types import Prompt, Task

__all__ = ["GENERATORS", "Tasks", "add", "encode", "generator", "load", "origin", "sort"]

HELD_OUT = 8  # of a generator's prompts one in so many is never trained on, whatever eval.tasks says
PATIENCE = 1000  # numbers tried in vain before a generator is said to make too few prompts
RETRY = (1 << 31) - 1  # from a number whose prompt is held out to the next one that is tried in its place


class Tasks:
    """The training stream and the held-out tasks of a recipe; no prompt is in both, unless `eval.path` says so."""

    def __init__(self, config: Config):
        """Raises `RecipeError` with every problem of every source."""
        chosen = config.tasks
        problems: list[str] = []
        try:
            chat_template(chosen.chat_template)
        except RecipeError as error:
            problems += error.problems
        self.schedule: Callable[[int], tuple[int, int]] = lambda position: (0, position)
        named = {"": chosen} if chosen.path or chosen.generate else {}  # none: there are only held-out tasks
        if chosen.mixture:
            named, weights = mixture.sources(chosen)
            self.schedule = mixture.Schedule(weights)
        self.sources: list[Source] = []
        for name, source in named.items():
            try:
                self.sources.append(Source(name, source, config.seed))
            except RecipeError as error:
                problems += [_keyed(name, problem) for problem in error.problems]
        if problems:
            raise RecipeError(problems)
        self.held_out = self._held_out(config.eval.path, config.eval.tasks, chosen)

    def _held_out(self, path: str, wanted: int, config: TasksConfig) -> list[Task]:
        """`wanted` tasks that are not trained on, of every source in proportion."""
        turns = [self.schedule(position)[0] for position in range(0 if path else wanted)]
        held = [source.hold_out(turns.count(i)) for i, source in enumerate(self.sources)]
        prompts = {_text(task.prompt) for tasks in held for task in tasks}
        for source in self.sources:
            source.leave_out(prompts)  # one source's may be among another's rows
        if path:
            return [replace(t, prompt=dressed(t.prompt, config)) for t in load(path, config)[:wanted]]
        return [source.dressed(task) for source, tasks in zip(self.sources, held, strict=True) for task in tasks]

    def stream(self, start: int = 0) -> Iterator[Task]:
        """Tasks without end, from position `start` on. A file's come in a new order every epoch."""
        for position in count(start):
            source, index = self.schedule(position)
            yield self.sources[source].at(index)

    @property
    def rows(self) -> list[Task]:
        """What is trained on, where it is read and not generated."""
        return [task for source in self.sources for task in source.rows]

    def examples(self) -> list[Task]:
        """Every row and held-out task, and the first task of each generator."""
        return [*self.rows, *self.held_out, *(source.at(0) for source in self.sources if source.make)]

    def ids(self) -> set[str] | None:
        """The ids, without an epoch, of all the tasks there are; `None` where they have no end."""
        return None if any(source.make for source in self.sources) else {task.id for task in self.rows}


class Source:
    """Tasks from one place, by index. `at` is a function of (seed, name, index): no index needs the ones before it."""

    def __init__(self, name: str, config: TasksConfig, seed: int):
        self.name, self.config, self.seed = name, config, seed
        self.rows: list[Task] = []
        self.make: Callable[..., Task] | None = None
        self.left_out: set[str] = set()
        self.epoch, self.order = -1, [0]
        if not config.generate:
            self.rows = load(config.path, config)
            return
        self.make = generator(config)
        try:
            self.make(0, **config.options)
        except (TypeError, ValueError, LookupError) as error:
            raise RecipeError([f"tasks.options: {config.generate} does not take them: {error}"]) from None

    def hold_out(self, wanted: int) -> list[Task]:
        """`wanted` tasks of distinct prompts for evaluation; fewer where there are few.

        Which prompts are taken depends on the prompts alone, so that stages with other seeds or templates do not train on
        them: of a generator's, those whose hash is a multiple of 8, however many are asked; of a file's, those of the
        lowest hashes and at most half of them, so there a stage that holds out fewer trains on the others.
        """
        if not wanted:
            return []
        if self.make is None:
            prompts = sorted({_text(t.prompt) for t in self.rows}, key=_hash)
            chosen = set(prompts[: min(wanted, len(prompts) // 2)])  # by prompt: a duplicate must not be on both sides
            return [t for t in self.rows if _text(t.prompt) in chosen]
        found: dict[str, Task] = {}
        vain = 0
        for number in count(self._first()):
            task = self.make(number, **self.config.options)
            text = _text(task.prompt)
            vain += 1
            if _hash(text) % HELD_OUT == 0 and text not in found:
                found[text], vain = task, 0
            if len(found) == wanted or vain == PATIENCE:
                break
        if not found:
            raise RecipeError([_keyed(self.name, f"tasks.generate: {self.config.generate} makes so few different prompts that "
                                                 "none can be held out; say eval.tasks=0 or eval.path")])  # fmt: skip
        return list(found.values())

    def leave_out(self, prompts: set[str]) -> None:
        """These prompts are not trained on. From here on `rows` are as they are asked."""
        self.left_out = prompts
        if self.make is None:
            self.rows = [self.dressed(t) for t in self.rows if _text(t.prompt) not in prompts]
            if not self.rows:
                raise RecipeError([_keyed(self.name, f"{self.config.path}: no task to train on")])

    def at(self, index: int) -> Task:
        """The task of that index, counted over all epochs."""
        if self.make is not None:
            return self.dressed(self._made(index))
        epoch, place = divmod(index, len(self.rows))
        if epoch != self.epoch:
            rng = random.Random("/".join([str(self.seed), *([self.name] if self.name else []), str(epoch)]))
            self.epoch, self.order = epoch, rng.sample(range(len(self.rows)), len(self.rows))
        task = self.rows[self.order[place]]
        return replace(task, id=f"{task.id}@{epoch}") if epoch or origin(task.id)[0] != task.id else task

    def dressed(self, task: Task) -> Task:
        """`task` as it is asked: with the recipe's template and system message, and the source's name and reward."""
        task = replace(task, prompt=dressed(task.prompt, self.config))
        if not self.name:
            return task
        reward, domain = task.reward or self.config.reward or None, task.domain or self.name
        return replace(task, id=f"{self.name}:{task.id}", reward=reward, domain=domain)

    def _first(self) -> int:
        return 1_000_003 * self.seed

    def _made(self, index: int) -> Task:
        """The generated task of that index: where its prompt is held out another number's, found without its neighbours."""
        assert self.make is not None
        for attempt in range(PATIENCE):
            task = self.make(self._first() + index + attempt * RETRY, **self.config.options)
            text = _text(task.prompt)
            if _hash(text) % HELD_OUT and text not in self.left_out:
                return task
        raise RecipeError([_keyed(self.name, f"tasks.generate: {self.config.generate} makes so few different prompts that "
                                             "all are held out")])  # fmt: skip


def origin(name: str) -> tuple[str, int]:
    """A task's id without its epoch, and the epoch: `a.jsonl:3@2` -> (`a.jsonl:3`, 2)."""
    base, at, epoch = name.rpartition("@")
    return (base, int(epoch)) if at and epoch.isdecimal() else (name, 0)


def _keyed(name: str, problem: str) -> str:
    """A problem of a source, with the source's key in place of that of `tasks`."""
    if not name:
        return problem
    inside = problem.startswith("tasks.")
    return f"tasks.mixture.{name}.{problem.removeprefix('tasks.')}" if inside else f"tasks.mixture.{name}.path: {problem}"


def load(path: str, config: TasksConfig) -> list[Task]:
    """The tasks of a JSONL or Parquet file, of a folder of such files, or of a Hugging Face data set.

    Columns: `prompt` (text or chat messages), `answer`, and optionally `response` (a demonstration), `reward` (the
    name of a reward, a list of names, or weights by name), `info` (an object or JSON text of one: what a reward needs
    beside the answer), `domain` (what scores are told by) and `id`. `tasks.fields` renames.
    Raises `RecipeError` with every bad row's file and number.
    """
    rows = list(_rows(Path(path), path, config.split))
    names = {ours: config.fields.get(ours, ours) for ours in FIELDS}
    tasks, problems = [], []
    met: dict[str, str] = {}  # results are told by id
    for where, row in rows:
        try:
            task = _task(where, row, names)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        tasks.append(task)
        if met.setdefault(task.id, where) != where:
            problems.append(f"{where}: has the id {short(repr(task.id))} of {met[task.id]}")
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
                except (ValueError, RecursionError) as error:
                    yield f"{file}:{i}", error


def _task(where: str, row: Any, names: dict[str, str]) -> Task:
    if isinstance(row, UnicodeDecodeError):
        raise ValueError(f"is not UTF-8 (byte 0x{row.object[row.start]:02x} at {row.start})")
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
        raise ValueError(f"has no {names['prompt']}; it has {short(', '.join(map(str, row))) or 'nothing'}")
    answer, response, reward = (row.get(names[k]) for k in ("answer", "response", "reward"))
    info = _info(row.get(names["info"]), names["info"])
    if answer is None and response is None and info is None:
        raise ValueError(f"has neither {names['answer']} nor {names['response']} nor {names['info']}")
    if response is not None and not isinstance(response, str):
        raise ValueError(f"{names['response']} is not text")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"{names['answer']} is {'NaN' if math.isnan(answer) else answer}")
    if reward is not None:
        reward = mixture.rewards(reward, names["reward"])
    for name in reward or ():
        if problem := find(name)[1]:
            raise ValueError(problem)
    asked = prompt if isinstance(prompt, str) else "".join(text for message in prompt for text in message.values())
    for name, text in (("prompt", asked), ("response", response or "")):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise ValueError(f"{names[name]} holds half a character ({half}), which no tokenizer takes") from None
    expected = None if answer is None else str(answer)
    domain = str(row.get(names["domain"]) or "")
    number = row.get(names["id"])  # Parquet has None where only other rows have one
    return Task(where if number is None else str(number), prompt, expected, response, reward or None, info, domain)


def _info(value: Any, name: str) -> dict[str, Any] | None:
    """A row's info; Parquet fills in None for the keys that only other rows have."""
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is text, but not JSON: {error}") from None
    if value is None or value == "":
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is neither an object nor the JSON text of one")
    return {key: inner for key, inner in value.items() if inner is not None} or None


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _hash(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass"))
