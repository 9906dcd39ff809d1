"""One training run: start learners and engines, examine, train, examine again, write it all down."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rlreason import checkpoint, manifest, model
from rlreason.algorithms import FILTERS
from rlreason.config import Config
from rlreason.display import Display, duration
from rlreason.errors import Interrupted
from rlreason.evaluate import Regression
from rlreason.exams import Exams
from rlreason.history import History
from rlreason.loop import Learner, Rollout, train
from rlreason.metrics import Journal
from rlreason.rewards.pool import Pool
from rlreason.rewards.pool.budget import Budget
from rlreason.signals import stopping
from rlreason.tasks import Tasks


async def run(config: Config, name: str, tasks: Tasks, began: float) -> dict[str, Any]:
    """Train as the recipe says, going on from the newest checkpoint in `config.out`; returns the summary."""
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
            else:
                manifest.amend(out, weights={"begin": await learners.digest()})

            def say(event: str, text: str, **details: Any) -> None:
                journal.event(event, step=learners.version, **details)
                display.say(text)

            exams = Exams(config, tasks.held_out, answers, rollouts, say)
            weights = await learners.publish()
            if recorded:
                await rollouts.load(weights, learners.version)
            await exams.load(weights, learners.version)
            if not learners.version:
                await exams.score("before", 0)

            await _train(config, tasks, exams, learners, journal, display, cursor, stop)
            if recorded:  # the engines have stood by meanwhile
                await rollouts.load(await learners.publish(), learners.version)
            await exams.score("after", learners.version)
            worse = exams.regressions()
            for one in worse:
                say("regression", f"worse than before: {one}", domain=one.domain)
            held = (manifest.read(out) or {}).get("weights", {})
            manifest.amend(out, weights=held | {"end": await learners.digest()})
        journal.event("end", step=learners.version)
        journal.close()
        summary = journal.totals(began, begin, learners.version) | _told(out, exams, worse, learners.version)
        display.say(f"{summary['steps']} steps in {duration(summary['seconds'])}; the model is in {summary['model']}")
    return summary


async def _train(
    config: Config, tasks: Tasks, exams: Exams, learners: Learner, journal: Journal, display: Display, cursor: int,
    stop: Callable[[], bool],
) -> None:  # fmt: skip
    """The loop from `cursor` on, with all that watches it. Raises `Interrupted` if it was asked to stop."""
    began = time.monotonic()
    budget = Budget(config.rewards.failures, config.loop.groups * config.loop.samples, journal.event, display.say)
    keep = budget.watch(FILTERS[config.algorithm.keep if config.algorithm.refill else "all"])  # else the learner drops
    history = History(config, tasks, exams, keep, learners.version)
    await train(
        config.loop, history.stream(cursor), history, learners,
        keep=history.keep,
        log=lambda step, groups, metrics: display.step(journal.step(step, groups, metrics | history.metrics)),
        stop=lambda: stop() or history.finished or 0 < config.loop.seconds <= time.monotonic() - began,
        cursor=cursor,
    )  # fmt: skip
    if stop():
        await exams.drop()
        raise Interrupted(_stopped(learners.version, journal.out))
    await exams.settle()
    if history.finished:
        exams.say("solved", f"every task is solved (tasks.solved: {config.tasks.solved:g}), so there is nothing left to ask")


def _told(out: Path, exams: Exams, worse: list[Regression], version: int) -> dict[str, Any]:
    """What a summary says beside the totals: the scores, what got worse, and where the models are."""
    best = out / "weights" / "best"
    scores = {f"accuracy_{when}": exams.accuracy(when) for when in ("before", "after")}
    kept = {"best": best.resolve().name if best.exists() else None, "model": str(out / "weights" / f"v{version}")}
    return scores | kept | {"regressions": [str(one) for one in worse]}


def _stopped(version: int, out: Path) -> str:
    kept = f"at step {version}, committed in {out / 'checkpoints'}" if version else "before the start"
    return f"stopped {kept}; the same command goes on from there"


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
