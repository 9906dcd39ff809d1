"""One run of one recipe, whatever its kind: look at what it needs, claim its folder, do it, sign it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlreason import checkpoint, export, manifest, model, sampling, training
from rlreason.config import Config, to_yaml
from rlreason.errors import Failure, Interrupted, RecipeError, StorageError
from rlreason.evaluate import Score
from rlreason.exams import score_model as examine
from rlreason.exams import write_samples
from rlreason.rewards.code import sandbox
from rlreason.tasks import Tasks, load

Summary = dict[str, Any]
KINDS = {"train": training.run, "sample": sampling.run, "eval": sampling.run, "export": export.run}


def run(config: Config, name: str, began: float | None = None, root: Path | None = None) -> Summary:
    """Do what the recipe says, going on where it was cut off; returns its summary. What is done is not done again.

    `began`: when the command began (`time.time()`), for `seconds_to_first_step`. `root`: the folder of the pipeline
    that this is a stage of.
    """
    out, begin = Path(config.out), time.time()
    tasks = None if (over := done(out)) else inputs(config)
    with claimed(out):
        if changed := manifest.changes(config, root):
            told = [f"    {one}" for one in changed[:8]] + [f"    … and {len(changed) - 8} more"] * (len(changed) > 8)
            raise RecipeError([f"out: {out} holds other work than this recipe makes:", *told,
                               "    give this one its own out=…, or say --fresh"])  # fmt: skip
        if over:
            return read_summary(out)
        checkpoint.write_atomic(out / "recipe.yaml", to_yaml(config))
        named = {reward for task in tasks.examples() for reward in task.reward or ()} if tasks else set()
        manifest.begin(config, name, root, named)
        try:
            summary = asyncio.run(KINDS[config.kind](config, name, tasks, began or begin))
        except Exception as error:
            state = "stopped" if isinstance(error, Interrupted) else "failed"
            why = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            manifest.amend(out, state=state, why=why[:2000])
            raise
        checkpoint.write_atomic(out / "summary.json", json.dumps(summary, indent=1))
        manifest.finish(config, time.time() - begin)
        sampling.clear(out)
        return summary


def wants_engines(config: Config) -> bool:
    """Is there something left to do for which processes are started?"""
    return config.kind != "export" and not config.sample.teacher and not done(Path(config.out))


def done(out: Path) -> bool:
    """Is the run in `out` at its end?"""
    made = manifest.read(out)
    return made is not None and made["state"] == "done"


def read_summary(out: Path) -> Summary:
    summary: Summary = checkpoint.read_json(out / "summary.json")
    return summary


def inputs(config: Config, later: Collection[str] = ()) -> Tasks | None:
    """The recipe's tasks, read, and its model looked at: before anything starts, and with all problems of both.

    `later`: options that name what is still to be made, and cannot be looked at yet; without its tasks, or for a kind
    that asks none, `None` is returned.
    """
    problems: list[str] = []
    tasks = None
    if config.kind != "export":
        try:
            tasks = _tasks(config, later)
        except RecipeError as error:
            problems += error.problems
    try:
        if not model.is_made(config.model) and "model" not in later and not config.sample.teacher:
            model.directory(config.model, Path(config.out))
        if tasks and not config.tasks.chat_template and "model" not in later:
            model.check_chat(config.model, tasks.examples())
    except RecipeError as error:
        problems += error.problems
    if tasks:
        problems += _refused(config, tasks)
    compared = config.kind == "train" and config.algorithm.compares and config.algorithm.reference
    if compared and not {"model", "algorithm.reference"} & set(later):
        strange = model.strange(compared, config.model, Path(config.out))
        problems += [f"algorithm.reference: {p.removeprefix('model: ')}" for p in strange]
    if config.export.scores and "export.scores" not in later and not Path(config.export.scores).is_file():
        problems.append(f"export.scores: {config.export.scores}: there is no such file")
    if problems:
        raise RecipeError(problems)
    return tasks


def _tasks(config: Config, later: Collection[str]) -> Tasks | None:
    """The tasks; of those that are still to be made, in part or whole, the rest is looked at, and `None` returned."""
    if not any(key.startswith(("tasks.", "eval.")) for key in later):
        return Tasks(config)
    left = {name: source for name, source in config.tasks.mixture.items() if f"tasks.mixture.{name}.path" not in later}
    known = replace(config.tasks, mixture=left, path="" if "tasks.path" in later else config.tasks.path)
    problems: list[str] = []
    if left or known.path or known.generate:
        try:
            Tasks(replace(config, tasks=known, eval=replace(config.eval, tasks=0)))
        except RecipeError as error:
            problems += error.problems
    if config.eval.path and "eval.path" not in later:
        try:
            load(config.eval.path, config.tasks)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return None


def _refused(config: Config, tasks: Tasks) -> list[str]:
    """Rewards that the recipe or its rows name, and that cannot judge these tasks, or not on this machine."""
    of = {name: [task for task in tasks.examples() if name in (task.reward or config.tasks.reward)] for name in ("code", "gym")}
    problems = []
    if of["gym"] and not any("gym" in (task.info or {}) for task in of["gym"]):
        problems.append("tasks.reward: gym: judges what tasks.generate: gym.<data set> makes, and no task here comes from it")
    if of["code"] and not any(task.answer or (task.info or {}).get("tests") for task in of["code"]):
        problems.append("tasks.reward: code: no task has tests; they stand in its info, as docs/methods.md says")
    options = config.rewards.options.get("code", {})
    if of["code"] and not options.get("sandbox") and (why := sandbox.refusal(options.get("isolation", "auto"))):
        problems.append(f"tasks.reward: code: {why}")
    return problems


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold `out` as this process's; refuse if somebody else holds it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"out: another process is running in {out}; wait for it, or give this run its own") from None
        yield


def running(out: Path) -> bool:
    """Does a process hold `out`?"""
    try:
        with (out / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


async def score_model(config: Config, name: str) -> Score:
    """Score a model on the recipe's held-out tasks: the engines alone, weights from the model's directory."""
    from rlreason import cluster

    tasks = Tasks(config).held_out
    if not tasks:
        raise RecipeError(["eval.tasks: is 0, so there is nothing to score a model on; say eval.tasks=256"])
    path = model.local(config.model, Path(config.out))
    async with cluster.start(config, path, False, 0, config.rollout.workers) as (_, rollouts):
        await rollouts.load({"kind": "file", "path": str(Path(path).absolute())}, 0)
        result, rows = await examine(rollouts, tasks, config)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    write_samples(Path(config.out) / f"{name}.jsonl", rows)
    return result


def aside(out: Path, where: Path | None = None) -> None:
    """Move an old run out of the way, to `where` if that is said; nothing is deleted."""
    if running(out):
        raise StorageError(f"out: another process is running in {out}; wait for it, or give this run its own")
    if out.exists():
        place = where or out.parent
        place.mkdir(parents=True, exist_ok=True)
        os.replace(out, place / f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}")
