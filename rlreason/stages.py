"""One run of one recipe, whatever its kind: look at what it needs, claim its folder, do it, sign it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlreason import checkpoint, export, manifest, model, sampling, space, storage, training
from rlreason.config import Config, to_yaml
from rlreason.errors import Failure, Interrupted, RecipeError, StorageError
from rlreason.evaluate import Score
from rlreason.exams import score_model as examine
from rlreason.exams import write_samples
from rlreason.fleet import Directory
from rlreason.rewards.code import sandbox
from rlreason.tasks import Tasks, load

Summary = dict[str, Any]
KINDS = {"train": training.run, "sample": sampling.run, "eval": sampling.run, "export": export.run}


def run(
    config: Config, name: str, began: float | None = None, root: Path | None = None, force: bool = False
) -> Summary:  # fmt: skip
    """Do what the recipe says, going on where it was cut off; returns its summary. What is done is not done again.

    `began`: when the command began (`time.time()`), for `seconds_to_first_step`. `root`: the folder of the pipeline
    that this is a stage of. `force`: go on from the newest checkpoint though the recipe has changed; what is done is
    then gone on with too, unless it is a stage.

    Raises `RecipeError` for a recipe that has changed, `StorageError` where there is no room for what it makes.
    """
    out, begin = Path(config.out), time.time()
    over = done(out) and not (force and not root and manifest.changes(config, root))
    tasks = None if over else inputs(config)
    if not over:
        space.check({name: config}, out)
    with claimed(out):
        changed = [] if over and root and force else _changed(config, root, force)
        if over:
            return read_summary(out)
        if force and not root and not manifest.begun(manifest.read(out)) and not (out / "checkpoints").exists():
            raise RecipeError([f"--force: {out} holds no work to go on with; is out=… what you meant? Else leave --force out"])
        stage = (config.learner.deepspeed.get("zero_optimization") or {}).get("stage", 0)
        if config.kind == "train" and (wrong := checkpoint.unfit(out / "checkpoints", config.learner.workers, stage)):
            raise RecipeError([wrong])
        _tell(out, "forced", changed)
        _tell(out, "rescaled", manifest.rescaled(config, root))
        checkpoint.write_atomic(out / "recipe.yaml", to_yaml(config))
        named = {reward for task in tasks.examples() for reward in task.reward or ()} if tasks else set()
        manifest.begin(config, name, root, named)
        try:
            summary = asyncio.run(KINDS[config.kind](config, name, tasks, began or begin))
        except Exception as error:
            state = "stopped" if isinstance(error, Interrupted) else "failed"
            why = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            try:
                manifest.amend(out, state=state, why=why[:2000])
            except StorageError as full:  # often what ended the run, which is told after this
                print(f"rlreason: {full}", file=sys.stderr)
            raise
        checkpoint.write_atomic(out / "summary.json", json.dumps(summary, indent=1))
        manifest.finish(config, time.time() - begin)
        sampling.clear(out)
        return summary


def _changed(config: Config, root: Path | None, force: bool) -> list[str]:
    """How what is in the folder differs from what the recipe makes; refused with just that, unless `force`."""
    changed = manifest.changes(config, root)
    if changed and not force:
        told = [f"    {one}" for one in changed[:8]] + [f"    … and {len(changed) - 8} more"] * (len(changed) > 8)
        raise RecipeError([f"out: {config.out} holds other work than this recipe makes:", *told,
                           "    give this one its own out=…, say --fresh to begin anew, or --force to go on with it from its "
                           "newest checkpoint"])  # fmt: skip
    return changed


def _tell(out: Path, event: str, changes: list[str]) -> None:
    """An event of a run that goes on with another recipe than it was begun with."""
    if changes:
        print(f"rlreason: {event}: {'; '.join(changes)}", file=sys.stderr)
        checkpoint.append(out / "events.jsonl", json.dumps({"at": time.time(), "event": event, "changes": changes}))


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
    """Hold `out` as this process's; refuse if somebody else holds it. The kernel lets go of it when this process ends,
    however it ends. Raises `StorageError`."""
    with storage.stored(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a+")
    with lock:
        with storage.stored(out / ".lock"):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                who = lock.read().strip() or "unknown"
                raise StorageError(
                    f"out: another process is running in {out} ({who}); wait for it, or give this run its own"
                ) from None
            with suppress(OSError):  # for people only, and on a full disk it may be a run that is done and only read
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}")
                lock.flush()
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

    def say(event: str, text: str, **details: Any) -> None:
        print(text, file=sys.stderr)

    async with cluster.start(config, path, False, 0, config.rollout.workers, say) as (_, rollouts):
        await rollouts.load(Directory(Path(path)), 0)
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
        with storage.stored(place):
            place.mkdir(parents=True, exist_ok=True)
            storage.rename(out, storage.free(place / f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
