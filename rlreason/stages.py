"""One run of one recipe: start what it needs, score, train, score again, write it all down."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from rlreason import checkpoint, model
from rlreason.algorithms import FILTERS
from rlreason.config import Config, to_yaml
from rlreason.display import Display, duration
from rlreason.errors import Interrupted, RecipeError, StorageError
from rlreason.evaluate import Score, evaluate
from rlreason.history import History
from rlreason.loop import Rollout, train
from rlreason.metrics import Journal
from rlreason.rewards.code import sandbox
from rlreason.rewards.pool import Pool
from rlreason.rewards.pool.budget import Budget
from rlreason.tasks import Tasks
from rlreason.types import Group

Summary = dict[str, Any]


def run(config: Config, name: str, began: float | None = None) -> Summary:
    """Train as the recipe says, going on from the newest checkpoint in `config.out`; returns its summary.

    `began`: when the command began (`time.time()`), for `seconds_to_first_step`.
    """
    out = Path(config.out)
    tasks = inputs(config)
    with claimed(out, to_yaml(config)):
        summary = out / "summary.json"
        if summary.exists():
            done: Summary = checkpoint.read_json(summary)
            return done
        return asyncio.run(_run(config, name, tasks, began or time.time()))


def inputs(config: Config) -> Tasks:
    """The recipe's tasks, read, and its model looked at: before anything starts, and with all problems of both."""
    problems: list[str] = []
    tasks = None
    try:
        tasks = Tasks(config)
    except RecipeError as error:
        problems += error.problems
    try:
        if not model.is_made(config.model):
            model.directory(config.model, Path(config.out))
        if tasks and not config.tasks.chat_template:
            model.check_chat(config.model, tasks.examples())
    except RecipeError as error:
        problems += error.problems
    if tasks:
        problems += _refused(config, tasks)
    if config.algorithm.compares and (name := config.algorithm.reference):
        problems += [
            f"algorithm.reference: {p.removeprefix('model: ')}" for p in model.strange(name, config.model, Path(config.out))
        ]
    if problems or tasks is None:
        raise RecipeError(problems)
    return tasks


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
def claimed(out: Path, recipe: str) -> Iterator[None]:
    """Hold `out` as the folder of this recipe's run; refuse if it is another's, or if somebody holds it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"out: another process is running in {out}; wait for it, or give this run its own") from None
        _sign(out, recipe)
        yield


def _sign(out: Path, recipe: str) -> None:
    written = out / "recipe.yaml"
    begun = any((out / name).exists() for name in ("metrics.jsonl", "accuracy_before.json"))  # else it was a mistake
    if written.exists() and begun and written.read_text() != recipe:
        old, new = written.read_text().splitlines(), recipe.splitlines()
        changed = [f"    was {a.strip()!r}, is {b.strip()!r}" for a, b in zip(old, new, strict=False) if a != b][:5]
        raise RecipeError(
            [f"out: {out} holds a run of another recipe:", *changed, "    give this one its own out=…, or say --fresh"]
        )
    checkpoint.write_atomic(written, recipe)


async def _run(config: Config, name: str, tasks: Tasks, began: float) -> Summary:
    from rlreason import cluster

    begin = time.time()
    out, recorded = Path(config.out), config.algorithm.answers == "recorded"
    path, made = model.directory(config.model, out), model.is_made(config.model)
    found = checkpoint.newest(out / "checkpoints")
    learning, answering = config.learner.workers, config.rollout.workers if not recorded or tasks.held_out else 0
    with Display(name, config.loop.steps) as display, stopping() as stop:
        display.say(f"starting {learning} learners and {answering} engines …")
        async with (
            cluster.start(config, path, made, learning, answering) as (learners, rollouts),
            _answers(config, path, rollouts) as answers,
        ):
            cursor = await learners.restore(found[0]) if found else 0
            journal = Journal(config, learners.version)
            journal.event("start", step=learners.version, resumed=bool(found))
            if found:
                display.say(f"going on from {found[0]}")
            await rollouts.load(await learners.publish(), learners.version)
            if not learners.version:
                await _score(config, "before", tasks, rollouts, display)

            training = time.monotonic()
            budget = Budget(config.rewards.failures, config.loop.groups * config.loop.samples, journal.event, display.say)
            keep = budget.watch(FILTERS[config.algorithm.keep if config.algorithm.refill else "all"])  # else the learner drops
            history = History(config, tasks, answers, keep, learners.version)
            cursor = await train(
                config.loop, history.stream(cursor), history, learners,
                keep=history.keep,
                log=lambda step, groups, metrics: display.step(journal.step(step, groups, metrics | history.metrics)),
                stop=lambda: stop() or history.finished or 0 < config.loop.seconds <= time.monotonic() - training,
                cursor=cursor,
            )  # fmt: skip
            if history.finished:
                journal.event("solved", step=learners.version)
                display.say(f"every task is solved (tasks.solved: {config.tasks.solved:g}), so there is nothing left to ask")
            if stop():
                kept = (
                    f"at step {learners.version}, committed in {out / 'checkpoints'}"
                    if learners.version
                    else "before the start"
                )
                raise Interrupted(f"stopped {kept}; the same command goes on from there")
            if recorded:  # the engines have stood by meanwhile
                await rollouts.load(await learners.publish(), learners.version)
            await _score(config, "after", tasks, rollouts, display)
        journal.event("end", step=learners.version)
        journal.close()
        summary = _summary(journal, learners.version, began, begin)
        checkpoint.write_atomic(out / "summary.json", json.dumps(summary, indent=1))
        display.say(f"{summary['steps']} steps in {duration(summary['seconds'])}; the model is in {summary['model']}")
    return summary


async def _score(config: Config, when: str, tasks: Tasks, rollouts: Rollout, display: Display) -> None:
    """Accuracy on the held-out tasks, before or after training: asked once, and kept across restarts."""
    kept = Path(config.out) / f"accuracy_{when}.json"
    if tasks.held_out and not kept.exists():
        result, groups = await evaluate(rollouts, tasks.held_out, config.eval.samples, config.metric)
        write_samples(Path(config.out) / "rollouts" / f"{when}.jsonl", groups)
        checkpoint.write_atomic(kept, json.dumps(result.dict()))
        display.say(f"{config.metric} on held-out tasks {when} training: {result}")


@asynccontextmanager
async def _answers(config: Config, path: str, rollouts: Rollout) -> AsyncIterator[Rollout]:
    """Who answers in training: the engines, or what was recorded."""
    if config.algorithm.answers != "recorded":
        yield rollouts
        return
    from transformers import AutoTokenizer

    from rlreason.recorded import Recorded

    log = Path(config.out) / "logs" / "rewards.log"  # the display has the terminal
    log.parent.mkdir(parents=True, exist_ok=True)
    async with Pool(config.rewards, config.tasks.reward, log) as pool:
        yield Recorded(config, AutoTokenizer.from_pretrained(path), pool)


def _summary(journal: Journal, steps: int, command: float, begin: float) -> Summary:
    """Of the whole run; but times are this process's, since the `command` and since the stage's `begin`."""
    rows = journal.rows()
    scores = {when: journal.out / f"accuracy_{when}.json" for when in ("before", "after")}
    return {
        **{f"accuracy_{when}": checkpoint.read_json(p) if p.exists() else None for when, p in scores.items()},
        "policy_gap_max": max((r["policy_gap"] for r in rows if r.get("policy_gap") is not None), default=None),
        "seconds_to_first_step": round(journal.first_step - command, 3) if journal.first_step else None,
        "seconds": round(time.time() - begin, 3),
        "steps": steps,
        "tokens": sum(r["tokens"] for r in rows),
        "peak_rss_bytes": journal.peak_rss,
        "model": str(journal.out / "weights" / f"v{steps}"),
    }


async def score_model(config: Config, name: str) -> Score:
    """Score a model on the recipe's held-out tasks: the engines alone, weights from the model's directory."""
    from rlreason import cluster

    tasks = Tasks(config).held_out
    if not tasks:
        raise RecipeError(["eval.tasks: is 0, so there is nothing to score a model on; say eval.tasks=256"])
    path = model.directory(config.model, Path(config.out))
    if not Path(path).is_dir():
        from huggingface_hub import snapshot_download

        path = snapshot_download(path)
    async with cluster.start(config, path, False, 0, config.rollout.workers) as (_, rollouts):
        await rollouts.load({"kind": "file", "path": str(Path(path).absolute())}, 0)
        result, groups = await evaluate(rollouts, tasks, config.eval.samples, config.metric)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    write_samples(Path(config.out) / f"{name}.jsonl", groups)
    return result


def write_samples(path: Path, groups: list[Group]) -> None:
    rows = ({"task": g.task.id, "answer": g.task.answer, "text": s.text, "reward": s.reward, "parts": s.parts}
            for g in groups for s in g.samples)  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def stopping() -> Iterator[Any]:
    """SIGTERM, SIGUSR1 (Slurm's warning) and a first Ctrl-C end the run after its step; a second Ctrl-C at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(number)

    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def fresh(out: Path) -> None:
    """Move an old run out of the way; nothing is deleted."""
    if out.exists():
        os.replace(out, out.with_name(f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
