"""What a run writes down: metrics.jsonl and rollouts always, W&B if asked. A reader needs nothing but the files."""

from __future__ import annotations

import errno
import json
import math
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

import psutil

from rlreason.config import Config, to_yaml
from rlreason.errors import StorageError, clipped
from rlreason.loop import Account
from rlreason.types import Group, Metrics, Prompt

CLIP = 100_000  # characters of a text that are written down for people to read


def describe(groups: Sequence[Group]) -> Metrics:
    """What a batch of answers is like. Means are over its samples; lengths are in answer tokens."""
    samples = [s for g in groups for s in g.samples]
    judged = [s for s in samples if s.reward is not None]
    metrics: Metrics = {
        "length": fmean(s.length for s in samples),
        "truncated": fmean(s.truncated for s in samples),
        "tokens": sum(s.length for s in samples),
        "unjudged": len(samples) - len(judged),
        "failed": sum(bool(s.failures) for s in samples),  # with a reward that raised, hung, …
        "flat": fmean(len({s.reward for s in g.judged()}) < 2 for g in groups),  # groups without a signal
    }
    if judged:
        metrics["reward"] = fmean(s.reward for s in judged if s.reward is not None)
    for name in dict.fromkeys(name for s in judged for name in s.parts):
        if parts := [part for s in judged if (part := s.parts.get(name)) is not None]:
            metrics[f"reward/{name}"] = fmean(parts)
    for name, times in Counter(name for s in samples for name in s.failures).items():
        metrics[f"failed/{name}"] = times
    return metrics


class Lines:
    """A file of JSON lines that is added to. Lines that cannot be written now are, in order, when the next can."""

    def __init__(self, path: Path):
        self.path = path
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.waiting: list[bytes] = []
        self.lock = threading.RLock()  # W&B's thread tells of its own
        if os.fstat(self.file).st_size != (whole := sum(map(len, self._whole()))):
            os.ftruncate(self.file, whole)  # else the half line that a crash left would swallow the next

    def add(self, row: dict[str, Any]) -> OSError | None:
        """Returns why it could not be written, for now."""
        line = json.dumps({k: _finite(v) for k, v in row.items()}).encode() + b"\n"
        with self.lock:
            self.waiting.append(line)
            return self.write()

    def write(self) -> OSError | None:
        with self.lock:
            while self.waiting and self.file >= 0:
                end = os.fstat(self.file).st_size
                try:
                    if os.write(self.file, self.waiting[0]) < len(self.waiting[0]):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                except OSError as error:
                    if os.fstat(self.file).st_size > end:
                        os.ftruncate(self.file, end)  # no half lines
                    return error
                del self.waiting[0]
            return None

    def read(self) -> list[dict[str, Any]]:
        """Whole lines only: the last may have been cut off by a crash."""
        try:
            return [json.loads(line) for line in self._whole()]
        except ValueError as error:
            raise StorageError(f"{self.path} is damaged: {error}") from None

    def cut(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Take back the lines that are not to be kept, all of which are at the end."""
        size = 0
        for line, row in zip(self._whole(), self.read(), strict=True):
            if not keep(row):
                break
            size += len(line)
        os.ftruncate(self.file, size)
        self.waiting = [line for line in self.waiting if keep(json.loads(line))]

    def close(self) -> None:
        """Raises `StorageError` if there are lines that could not be written to the end."""
        with self.lock:
            error = self.write()
            os.close(self.file)
            self.file = -1  # W&B's thread may outlive this, and the number soon is another file's
        if error:
            raise StorageError(f"{self.path}: {len(self.waiting)} lines could not be written: {error}")

    def _whole(self) -> list[bytes]:
        return [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


class Journal:
    """The files of one run, and how it is told to people. One line of metrics.jsonl and ledger.jsonl per step, none twice."""

    def __init__(self, config: Config):
        self.config, self.out = config, Path(config.out)
        (self.out / "rollouts").mkdir(parents=True, exist_ok=True)
        self.metrics, self.ledger, self.events = (Lines(self.out / f"{name}.jsonl") for name in ("metrics", "ledger", "events"))
        self.first_step = 0.0  # when the first training step began, by the clock on the wall
        self.peak_rss = 0
        self.trouble = ""  # why something could not be written, if that is so now
        self.wandb = Wandb(config, self) if config.log.wandb else None

    def back_to(self, version: int) -> None:
        """The run goes on from this step: what was written of later ones is taken back."""
        self.metrics.cut(lambda row: row["step"] <= version)
        self.ledger.cut(lambda row: row["step"] <= version)

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, as of the last step that counts."""
        rows = self.rows()
        return float(rows[-1].get("time/elapsed", 0.0)) if rows else 0.0

    def account(self, step: int, account: Account) -> None:
        """Write down what became of the tasks that were asked."""
        self._told(self.ledger.add({"step": step} | asdict(account)))

    def step(self, step: int, groups: list[Group], metrics: Metrics) -> Metrics:
        """Write down one training step; returns what was written."""
        self.first_step = self.first_step or time.time() - metrics["time/step"]
        metrics = {"step": step} | describe(groups) | metrics
        metrics["time/tokens_per_second"] = metrics["tokens"] / max(metrics["time/step"], 1e-9)
        self._told(self.metrics.add(metrics))
        try:
            self._rollouts(step, groups)
        except OSError as error:  # they are for people to read, and the run can do without
            self._told(error)
        self.peak_rss = max(self.peak_rss, resident_bytes())
        if self.wandb:
            self.wandb.log(metrics)
        return metrics

    def event(self, event: str, **details: Any) -> None:
        """Write down what happened beside the steps."""
        self._told(self.events.add({"at": time.time(), "event": event} | details))

    def count(self, event: str) -> int:
        """How often it has happened in this run."""
        return sum(row["event"] == event for row in self.events.read())

    def _told(self, error: OSError | None) -> None:
        """Let it be known, once, that something cannot be written; what matters is kept, and written when that is possible."""
        why = str(error) if error else ""
        if why and not self.trouble:
            print(f"rlreason: {why}; training goes on, and what could not be written is kept in memory", file=sys.stderr)
        self.trouble = why

    def totals(self, command: float, begin: float, steps: int) -> dict[str, Any]:
        """A summary of the whole run; but times are this process's, since the `command` and since the stage's `begin`."""
        rows = self.rows()
        return {
            "policy_gap_max": max((r["policy_gap"] for r in rows if r.get("policy_gap") is not None), default=None),
            "seconds_to_first_step": round(self.first_step - command, 3) if self.first_step else None,
            "seconds": round(time.time() - begin, 3),
            "steps": steps,
            "tokens": sum(r["tokens"] for r in rows),
            "peak_rss_bytes": self.peak_rss,
        }

    def close(self, patience: float = 60.0) -> None:
        """Raises `StorageError` if something could not be written to the end. W&B is waited for, `patience` seconds."""
        if self.wandb:
            self.wandb.close(patience)
        with ExitStack() as stack:  # each is closed, whatever becomes of the others
            for lines in (self.metrics, self.ledger, self.events):
                stack.callback(lines.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(5.0)  # the end of a run that was asked to stop, or failed, is not to wait for a service
        except StorageError as full:  # what ended the run is told after this
            print(f"rlreason: {full}", file=sys.stderr)

    def rows(self) -> list[dict[str, Any]]:
        return self.metrics.read()

    def _rollouts(self, step: int, groups: list[Group]) -> None:
        """The first `log.rollouts` samples of the step, for people to read."""
        chosen = [(g.task, s) for g in groups for s in g.samples][: self.config.log.rollouts]
        with (self.out / "rollouts" / f"step-{step:06}.jsonl").open("w", encoding="utf-8", errors="replace") as f:
            for task, s in chosen:
                row = {
                    "step": step, "task": task.id, "prompt": _shown(task.prompt), "answer": task.answer,
                    "text": clipped(s.text, CLIP),
                    "reward": s.reward, "parts": s.parts, "length": s.length, "truncated": s.truncated,
                    "version": s.version,
                } | ({"failures": s.failures} if s.failures else {})  # fmt: skip
                f.write(json.dumps(row, ensure_ascii=False) + "\n")


class Wandb:
    """Weights & Biases behind a thread: training never waits for it, and goes on when it is down."""

    def __init__(self, config: Config, journal: Journal):
        self.config, self.journal = config, journal
        self.records: queue.Queue[Metrics | None] = queue.Queue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def log(self, metrics: Metrics) -> None:
        self.records.put(metrics)

    def close(self, patience: float = 60.0) -> None:
        """Wait for what is still to be sent, `patience` seconds at most."""
        self.records.put(None)
        self.thread.join(patience)
        if self.thread.is_alive():
            self.journal.event("wandb", error=f"still sending after {patience:g} s; metrics.jsonl has everything")

    def _run(self) -> None:
        import wandb

        try:
            run = wandb.init(
                project=self.config.log.wandb,
                name=self.journal.out.name,
                dir=str(self.journal.out),
                config={"recipe": to_yaml(self.config)},
                settings=wandb.Settings(init_timeout=30, silent=True, console="off"),
            )
            while (metrics := self.records.get()) is not None:
                run.log(metrics, step=int(metrics["step"]))
            run.finish()
            wandb.teardown()  # its service is a process of its own
        except Exception as error:  # whatever a service on the far side of a network may raise
            self.journal.event("wandb", error=f"{type(error).__name__}: {error}", note="training goes on without it")


def resident_bytes() -> int:
    """Resident memory of this process and all below it; what they share counts in each."""
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # ended since it was listed
            continue
    return total


def _shown(prompt: Prompt) -> Prompt:
    if isinstance(prompt, str):
        return clipped(prompt, CLIP)
    return [{name: clipped(text, CLIP) for name, text in message.items()} for message in prompt]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
