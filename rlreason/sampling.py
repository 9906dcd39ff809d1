"""Answers that nobody learns from: rejection sampling, a teacher's demonstrations, a final examination.

It is the training loop with a learner that writes instead: each step's answers are a file, and that file is the checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rlreason import checkpoint, evaluate, manifest, model, pulse, storage
from rlreason.chaos import Chaos, Victim
from rlreason.config import Config, LoopConfig
from rlreason.display import Display, duration
from rlreason.errors import Interrupted, RecipeError, RolloutError
from rlreason.fleet import Directory, Say
from rlreason.loop import Rollout, WeightSource, train
from rlreason.metrics import Journal
from rlreason.rewards.pool import Pool
from rlreason.rewards.pool.budget import Budget
from rlreason.signals import stopping, unless
from rlreason.tasks import Tasks, origin
from rlreason.types import Group, Metrics, Task

Answered = dict[str, Any]  # a task and its answers, as a line of answers.jsonl


class Harvest:
    """The loop's `Learner`: `version` counts the files that are written."""

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.out) / "answers"
        with storage.stored(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.rows: list[Answered] = []
        self.ids: set[str] = set()  # of the tasks that were answered
        self.version = 0
        while self._whole(self.version + 1):
            self.version += 1
        self.damaged = self._aside()
        self.ids |= {row["task"] for row in self.written()}
        self.cursor = checkpoint.read_json(self._file(self.version))["cursor"] if self.version else 0

    async def step(self, groups: list[Group]) -> Metrics:
        self.rows = [written(group, self.config.metric) for group in groups]
        for row in self.rows:
            if row["task"] in self.ids:
                raise RecipeError([f"tasks: two have the id {row['task']!r}, and results are told by id"])
            self.ids.add(row["task"])
        self.version += 1
        return {"kept": sum(len(chosen(row, self.config)) for row in self.rows)} if self.config.kind == "sample" else {}

    async def publish(self) -> None:
        return None

    async def save(self, cursor: int, pending: Sequence[str] = ()) -> None:
        self.cursor = cursor
        checkpoint.write_atomic(self._file(self.version), json.dumps({"cursor": cursor, "tasks": self.rows}))

    def written(self) -> Iterator[Answered]:
        """Every task that was answered, in the order of asking."""
        for number in range(1, self.version + 1):
            yield from checkpoint.read_json(self._file(number))["tasks"]

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"

    def _whole(self, number: int) -> bool:
        """Was the step's file written, and can it be read?"""
        file = self._file(number)
        if not file.exists():
            return False
        with storage.stored(file):  # a disk that cannot be read now is no damage
            content = file.read_bytes()
        try:
            return {"cursor", "tasks"} <= json.loads(content).keys()
        except (ValueError, AttributeError):
            return False

    def _aside(self) -> list[str]:
        """Move aside what cannot be read, and what was answered after it, for those tasks are asked again; nothing is
        deleted. Returns what was moved."""
        later = [file for file in sorted(self.folder.glob("[0-9]*.json")) if int(file.stem) > self.version]
        for file in later:
            storage.rename(file, storage.free(file.with_name(f"{checkpoint.ASIDE}{file.name}")))
        return [f"{file} is damaged, or comes after one that is" for file in later]


class Steady:
    """A rollout whose weights stay as they are. A sample's version is the step it was asked in, so that `lag` tells
    how many steps it waited."""

    def __init__(self, rollout: Rollout, version: int):
        self.rollout, self.version = rollout, version

    async def sample(self, task: Task, n: int) -> Group:
        version = self.version
        group = await self.rollout.sample(task, n)
        for sample in group.samples:
            sample.version = version
        return group

    async def load(self, source: WeightSource, version: int) -> None:
        self.version = version


async def run(config: Config, name: str, tasks: Tasks, began: float) -> dict[str, Any]:
    """Ask, judge, write; then `samples.jsonl` (kind: sample), `answers.jsonl` and `scores.json`. Returns the summary."""
    begin, out = time.time(), Path(config.out)
    harvest = Harvest(config)
    if config.kind == "eval":
        wanted, samples = len(tasks.held_out), config.eval.samples
        left = islice(tasks.held_out, harvest.cursor, wanted)
    else:
        wanted, samples = config.sample.tasks or len(tasks.rows), config.loop.samples
        left = islice(tasks.stream(harvest.cursor), max(0, wanted - harvest.cursor))
    steps = math.ceil(wanted / config.loop.groups)
    loop: LoopConfig = replace(config.loop, samples=samples, steps=steps, save_every=1)
    with Display(name, steps) as display, stopping() as stop, Journal(config) as journal:
        journal.back_to(harvest.version)
        journal.event("start", step=harvest.version, resumed=harvest.version > 0)
        if harvest.damaged:
            journal.event("damaged", step=harvest.version, files=harvest.damaged)
            display.say(f"{harvest.damaged[0]}: moved aside, and its tasks are asked again")
        if harvest.version:
            display.say(f"going on after {harvest.cursor} of {wanted} tasks")
        if harvest.cursor < wanted:

            def say(event: str, text: str, **details: Any) -> None:
                journal.event(event, step=harvest.version, **details)
                display.say(text)

            async with AsyncExitStack() as stack:
                starting = stack.enter_async_context(answering(config, say))
                rollout, source, engines = await unless(stop, starting, "starting")
                manifest.amend(out, weights={"begin": source})
                budget = Budget(config.rewards.failures, loop.groups * samples, journal.event, display.say)
                chaos = Chaos(config.chaos, {"rollout": engines}, journal.count("chaos"), say)

                def log(step: int, groups: list[Group], metrics: Metrics) -> None:
                    display.step(journal.step(step, groups, metrics))
                    chaos.step(step)

                with chaos:
                    await train(
                        loop, left, Steady(rollout, harvest.version), harvest, log=log, cursor=harvest.cursor, stop=stop,
                        keep=budget.watch(lambda group: True),  # what could not be judged is told, and not replaced
                    )  # fmt: skip
            if stop():
                raise Interrupted(
                    f"stopped after {harvest.version} of {steps} steps, all kept; the same command goes on from there"
                )
        source = (manifest.read(out) or {}).get("weights", {}).get("begin")
        result = evaluate.evaluation(harvest.written(), config.eval.k if config.kind == "eval" else [1], config.seed)
        summary = _finish(config, harvest, result, wanted, source) | journal.totals(began, begin, harvest.version)
        journal.event("end", step=harvest.version)
        display.say(f"{summary['told']}; {duration(summary['seconds'])}")
        if config.kind == "eval":
            display.table(evaluate.table(result))
    return summary


@asynccontextmanager
async def answering(config: Config, say: Say) -> AsyncIterator[tuple[Rollout, str | None, Sequence[Victim]]]:
    """Who answers: engines with the model's weights, or a teacher behind an endpoint; which weights those are, and which
    processes."""
    if config.sample.teacher:
        from rlreason.teacher import Teacher

        log = Path(config.out) / "logs" / "rewards.log"  # the display has the terminal
        log.parent.mkdir(parents=True, exist_ok=True)
        async with (
            Pool(config.rewards, config.tasks.reward, log) as pool,
            Teacher(config, pool, **config.sample.teacher) as teacher,
            pulse.ticking(config.recovery.hung, log.with_name("driver.log")),
        ):
            yield teacher, str(config.sample.teacher["model"]), []
        return
    from rlreason import cluster

    path = model.local(config.model, Path(config.out))
    say("engines", f"starting {config.rollout.workers} engines …")
    async with cluster.start(config, path, False, 0, config.rollout.workers, say) as (learners, rollouts):
        await rollouts.load(Directory(Path(path)), 0)
        held = (manifest.read(Path(config.out)) or {}).get("weights", {})
        source = held.get("begin") or manifest.weights_of(Path(path))
        yield rollouts, source, cluster.roles(learners, rollouts)["rollout"]


def written(group: Group, metric: str) -> Answered:
    """A group as a line of answers.jsonl: what was asked, and every answer with its rewards."""
    task = group.task
    row = evaluate.row(group, metric)
    for sample, s in zip(row["samples"], group.samples, strict=True):
        sample |= {"text": s.text, "reward": s.reward} | ({"failures": s.failures} if s.failures else {})
    about = {"prompt": task.prompt, "answer": task.answer, "info": task.info, "rewards": task.reward}
    return row | about


def refused(row: Answered, sample: dict[str, Any], config: Config) -> str:
    """Why an answer is not kept: the first thing that is wrong with it, or nothing."""
    if sample["truncated"]:
        return "truncated"
    if sample["reward"] is None:
        return "unjudged"
    if config.sample.keep == "correct" and not (sample["parts"].get(row["metric"]) or 0) >= 1:
        return row["metric"]
    for name, least in config.sample.least.items():
        # A task with rewards of its own need not have this one, and then nothing of it is asked.
        if name in sample["parts"] and not (sample["parts"][name] is not None and sample["parts"][name] >= least):
            return name
    return ""


def ranked(row: Answered, config: Config) -> list[int]:
    """The answers to a task that are not refused, best first, and no text twice."""
    good = [i for i, sample in enumerate(row["samples"]) if not refused(row, sample, config)]
    distinct: dict[str, int] = {}
    for i in sorted(good, key=lambda i: (_worth(row["samples"][i], config), i)):
        distinct.setdefault(row["samples"][i]["text"], i)
    return list(distinct.values())


def _worth(sample: dict[str, Any], config: Config) -> float:
    """What answers are sorted by, smallest first."""
    return {"reward": -(sample["reward"] or 0.0), "shortest": sample["length"], "first": 0}[config.sample.by]


def chosen(row: Answered, config: Config) -> list[int]:
    """Which answers to a task are kept, best first: `sample.best` of those that are `ranked`."""
    return ranked(row, config)[: config.sample.best or None]


def reasons(row: Answered, config: Config) -> list[str]:
    """Why each answer to a task is left out, "" for those that are kept."""
    kept, texts = chosen(row, config), set[str]()
    told = []
    for i, sample in enumerate(row["samples"]):
        why = refused(row, sample, config)
        if not why and i not in kept:
            said = sample["text"] in texts or any(row["samples"][k]["text"] == sample["text"] for k in kept)
            why = "the same text again" if said else "beyond the best"
        texts |= {sample["text"]} if not why or why == "beyond the best" else set()
        told.append(why)
    return told


def demonstrations(rows: Callable[[], Iterable[Answered]], config: Config, source: str | None) -> Iterator[dict[str, Any]]:
    """The kept answers as tasks that a later stage imitates, each with the ids of what it came from.

    The prompt stands there as it was asked, template and system message included. Of a task that comes again in later
    epochs the best of all its answers are kept. `rows` are read twice, for they may not fit into memory.
    """
    pool: dict[str, list[tuple[float, int, int, int]]] = {}  # task -> (worth, row, place in it, text) of each good answer
    for number, row in enumerate(rows()):
        for i in ranked(row, config):
            sample = row["samples"][i]
            pool.setdefault(origin(row["task"])[0], []).append((_worth(sample, config), number, i, hash(sample["text"])))
    kept: set[tuple[int, int]] = set()
    for answers in pool.values():
        distinct: dict[int, tuple[int, int]] = {}
        for _, number, i, text in sorted(answers):
            distinct.setdefault(text, (number, i))
        kept |= set([*distinct.values()][: config.sample.best or None])
    for number, row in enumerate(rows()):
        for i in (i for i in ranked(row, config) if (number, i) in kept):
            sample = row["samples"][i]
            made = {"id": f"{row['task']}#{i}", "prompt": row["prompt"], "answer": row["answer"], "response": sample["text"]}
            made |= {"reward": row["rewards"], "info": row["info"], "domain": row["domain"] or None}
            made |= {"parents": {"task": row["task"], "sample": i, "model": source}, "scores": sample["parts"]}
            yield {key: value for key, value in made.items() if value is not None}


def _finish(config: Config, harvest: Harvest, result: evaluate.Evaluation, wanted: int, source: str | None) -> dict[str, Any]:
    """Write what the answers come to, whole or not at all; returns its part of the summary."""
    out = Path(config.out)
    checkpoint.write_lines(out / "answers.jsonl", harvest.written())
    scores = {"model": config.model, "weights": source, "metric": config.metric} | result.dict()
    checkpoint.write_atomic(out / "scores.json", json.dumps(scores, indent=1))
    first = result.scores.get("pass@1")
    summary: dict[str, Any] = {
        "accuracy_before": None,
        "accuracy_after": first.dict() if first else None,
        "model": config.model,
    }
    if config.kind == "eval":
        return summary | {"told": f"{len(result.tasks)} tasks, {config.eval.samples} answers each" + _missing(wanted, result)}
    checkpoint.write_lines(out / "samples.jsonl", demonstrations(harvest.written, config, source))
    why = Counter(reason for row in harvest.written() for reason in reasons(row, config))
    asked, good = sum(why.values()), why.pop("", 0)
    kept = sum(1 for _ in (out / "samples.jsonl").open("rb"))
    left_out = dict(why.most_common()) | {"beyond the best": why["beyond the best"] + good - kept}  # of all its epochs
    told = ", ".join(f"{number} {name}" for name, number in left_out.items() if number)
    if not kept:
        raise RolloutError(f"of {asked} answers none was kept ({told}), so there is nothing to learn from: see sample.keep and "
                           "sample.least")  # fmt: skip
    return summary | {
        "samples": kept,
        "left_out": left_out,
        "told": f"kept {kept} of {asked} answers" + (f" (not: {told})" if told else "") + _missing(wanted, result),
    }


def _missing(wanted: int, result: evaluate.Evaluation) -> str:
    """The tasks that have no score, and why."""
    overlong = wanted - len(result.tasks) - result.unjudged
    parts = {"could not be judged": result.unjudged, "had too long a prompt": overlong}
    return "".join(f"; {number} tasks {why}" for why, number in parts.items() if number)


def clear(out: Path) -> None:
    """Remove the parts that the whole was put together from."""
    shutil.rmtree(out / "answers", ignore_errors=True)
