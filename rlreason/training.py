"""One training run: start learners and engines, examine, train, examine again, write it all down; and again after a loss."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlreason import checkpoint, manifest, model
from rlreason.algorithms import FILTERS
from rlreason.body import Learners
from rlreason.chaos import Chaos
from rlreason.config import Config
from rlreason.display import Display, duration
from rlreason.errors import Failure, Interrupted, Lost, StorageError
from rlreason.evaluate import Regression
from rlreason.exams import Exams
from rlreason.fleet import Rollouts
from rlreason.history import History
from rlreason.loop import Rollout, train
from rlreason.metrics import Journal
from rlreason.rewards.pool import Pool
from rlreason.rewards.pool.budget import Budget
from rlreason.signals import stopping, unless
from rlreason.tasks import Tasks
from rlreason.types import Group, Metrics


@dataclass
class Losses:
    """How often in a row the learners were lost without a new checkpoint, and since when."""

    allowed: int
    row: int = 0
    version: int = -1  # of the newest checkpoint at the last loss
    since: float = 0.0  # by the monotonic clock; 0: there has been a step since

    def count(self, lost: Lost, committed: int) -> None:
        """Raises `Failure` if it is once too often."""
        self.row = self.row + 1 if committed == self.version else 1
        self.version, self.since = committed, self.since or time.monotonic()
        if self.row > self.allowed:
            raise Failure(f"the learners were lost {self.row} times in a row without a new checkpoint (recovery.retries); the "
                          f"last time: {lost}\nwhat was committed at step {committed} is kept, and the same command goes on "
                          "from it")  # fmt: skip


async def run(config: Config, name: str, tasks: Tasks, began: float) -> dict[str, Any]:
    """Train as the recipe says, going on from the newest checkpoint in `config.out`; returns the summary.

    When learners are lost they are put together again and the run goes on as the same command would, but with the
    engines as they are: what recovers a run is what resumes it.
    """
    from rlreason import cluster

    begin, recorded = time.time(), config.algorithm.answers == "recorded"
    out = Path(config.out)
    path, made = model.directory(config.model, out), model.is_made(config.model)
    learning, answering = config.learner.workers, config.rollout.workers if not recorded or tasks.held_out else 0
    losses = Losses(config.recovery.retries)
    with Display(name, config.loop.steps) as display, stopping() as stop, Journal(config) as journal:

        def say(event: str, text: str, **details: Any) -> None:
            journal.event(event, **details)
            display.say(text)

        display.say(f"starting {learning} learners and {answering} engines …")
        async with AsyncExitStack() as stack:
            starting = cluster.start(config, path, made, learning, answering, say)
            learners, rollouts = await unless(stop, stack.enter_async_context(starting), "starting")
            answers = await stack.enter_async_context(_answers(config, path, rollouts))
            chaos = stack.enter_context(Chaos(config.chaos, cluster.roles(learners, rollouts), journal.count("chaos"), say))

            def halted() -> bool:
                if learners.gone:
                    raise learners.gone
                return stop()

            life = Life(config, tasks, learners, rollouts, answers, journal, display, halted, say, chaos, losses)
            while True:
                try:
                    exams = await life.run()
                    held = (manifest.read(out) or {}).get("weights", {})
                    manifest.amend(out, weights=held | {"end": await learners.digest()})
                    break
                except Lost as lost:
                    found = _newest(out, say)
                    at = found.state["version"] if found else 0
                    say("learners", f"{lost}\nall learners are put together again, and go on from step {at}", what="lost",
                        name=lost.name, why=lost.why, step=learners.version, committed=at)  # fmt: skip
                    losses.count(lost, at)
                await unless(stop, asyncio.gather(learners.begin(), rollouts.forget()), "putting the learners together again")
            chaos.end()
        worse = exams.regressions()
        for one in worse:
            say("regression", f"worse than before: {one}", domain=one.domain)
        journal.event("end", step=learners.version)
        summary = journal.totals(began, begin, learners.version) | _told(out, exams, worse, learners.version)
        display.say(f"{summary['steps']} steps in {duration(summary['seconds'])}; the model is in {summary['model']}")
    return summary


@dataclass
class Life:
    """What stays of a run when its learners are lost, and how it is trained between two such losses."""

    config: Config
    tasks: Tasks
    learners: Learners
    rollouts: Rollouts
    answers: Rollout
    journal: Journal
    display: Display
    stop: Callable[[], bool]
    say: Callable[..., None]
    chaos: Chaos
    losses: Losses

    async def run(self) -> Exams:
        """From the newest checkpoint to the last examination. Raises `Lost` if a learner is lost."""
        config, out, learners, journal = self.config, Path(self.config.out), self.learners, self.journal
        recorded = config.algorithm.answers == "recorded"
        state: dict[str, Any] = {"cursor": 0}
        if found := _newest(out, self.say):
            state = await learners.restore(found.folder)
            for mended in checkpoint.tidy(out, learners.version, config.loop.keep):
                journal.event("tidied", step=learners.version, what=mended)
            self.display.say(f"going on from {found.folder}")
        journal.back_to(learners.version)
        journal.event("start", step=learners.version, resumed=bool(found))
        if not found:
            manifest.amend(out, weights={"begin": await learners.digest()})
        exams = Exams(config, self.tasks.held_out, self.answers, self.rollouts, self._said)
        try:
            if recorded:
                await self.rollouts.load(learners, learners.version)
            await exams.load(learners, learners.version)
            if not learners.version:
                await unless(self.stop, exams.score("before", 0), "examining the model before training")
            await self._train(exams, state)
            if recorded:  # the engines have stood by meanwhile
                await self.rollouts.load(learners, learners.version)
            await unless(self.stop, exams.score("after", learners.version), "examining the model after training")
        except BaseException:
            await exams.drop()
            raise
        return exams

    async def _train(self, exams: Exams, state: dict[str, Any]) -> None:
        """The loop from a checkpoint's `state` on, with all that watches it. Raises `Interrupted` if it was asked to stop."""
        config, journal, learners = self.config, self.journal, self.learners
        began, before = time.monotonic(), journal.elapsed
        budget = Budget(config.rewards.failures, config.loop.groups * config.loop.samples, journal.event, self.display.say)
        keep = budget.watch(FILTERS[config.algorithm.keep if config.algorithm.refill else "all"])  # else the learner drops
        history = History(config, self.tasks, exams, keep, learners.version, state.get("pending", ()))

        def over() -> bool:
            return history.finished or 0 < config.loop.seconds <= before + time.monotonic() - began

        await train(
            config.loop, history.stream(state["cursor"]), history, learners,
            keep=history.keep,
            log=lambda step, groups, metrics: self._log(step, groups, metrics | history.metrics),
            account=journal.account,
            stop=lambda: self.stop() or over(),
            unsaved=self._unsaved,
            cursor=state["cursor"],
            elapsed=before,
        )  # fmt: skip
        if self.stop():
            raise Interrupted(_stopped(learners.version, journal.out))
        await exams.settle()
        if history.finished:
            solved = f"every task is solved (tasks.solved: {config.tasks.solved:g}), so there is nothing left to ask"
            self._said("solved", solved)

    def _said(self, event: str, text: str, **details: Any) -> None:
        self.say(event, text, step=self.learners.version, **details)

    def _log(self, step: int, groups: list[Group], metrics: Metrics) -> None:
        self.display.step(self.journal.step(step, groups, metrics))
        if self.losses.since:
            seconds, self.losses.since = time.monotonic() - self.losses.since, 0.0
            self._said(
                "learners", f"a step was taken again {seconds:.1f} s after the loss", what="back", seconds=round(seconds, 3)
            )
        if metrics.get("diverged"):
            where = self.journal.out / "diverged"
            self._said("diverged", f"step {step} came to NaN or infinity and was skipped; its batch is in {where}")
        self.chaos.step(step)

    def _unsaved(self, error: StorageError) -> None:
        self._said("unsaved", f"no checkpoint of step {self.learners.version}: {error}\ntraining goes on, and the older ones "
                              "are as they were", why=str(error))  # fmt: skip


def _newest(out: Path, say: Callable[..., None]) -> checkpoint.Found | None:
    found = checkpoint.newest(out / "checkpoints")
    for damage in found.damaged if found else ():
        say("damaged", f"{damage}; it is moved aside, and an older checkpoint is taken", what=damage)
    return found


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
        yield Recorded(config, AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code), pool)
