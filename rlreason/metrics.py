"""What a run writes down: metrics.jsonl and rollouts always, W&B if asked. A reader needs nothing but the files."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from rlreason.config import Config, to_yaml
from rlreason.errors import StorageError
from rlreason.types import Group, Metrics


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


class Journal:
    """The files of one run, and how it is told to people. One line of metrics.jsonl per step, none twice."""

    def __init__(self, config: Config, version: int = 0):
        """`version`: the step that the run goes on from; what was written of later ones is taken back."""
        self.config, self.out = config, Path(config.out)
        (self.out / "rollouts").mkdir(parents=True, exist_ok=True)
        self.path = self.out / "metrics.jsonl"
        kept = [line for line, row in zip(self._lines(), self.rows(), strict=True) if row["step"] <= version]
        self.path.write_text("".join(kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.events = (self.out / "events.jsonl").open("a", encoding="utf-8")
        self.first_step = 0.0  # when the first training step began, by the clock on the wall
        self.peak_rss = 0
        self.wandb = Wandb(config, self) if config.log.wandb else None

    def step(self, step: int, groups: list[Group], metrics: Metrics) -> Metrics:
        """Write down one training step; returns what was written."""
        self.first_step = self.first_step or time.time() - metrics["time/step"]
        metrics = {"step": step} | describe(groups) | metrics
        metrics["time/tokens_per_second"] = metrics["tokens"] / max(metrics["time/step"], 1e-9)
        self.file.write(json.dumps({k: _finite(v) for k, v in metrics.items()}) + "\n")
        self.file.flush()
        self._rollouts(step, groups)
        self.peak_rss = max(self.peak_rss, resident_bytes())
        if self.wandb:
            self.wandb.log(metrics)
        return metrics

    def event(self, event: str, **details: Any) -> None:
        """Write down what happened beside the steps."""
        self.events.write(json.dumps({"at": time.time(), "event": event} | details) + "\n")
        self.events.flush()

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

    def close(self) -> None:
        if self.wandb:
            self.wandb.close()
        self.file.close()
        self.events.close()

    def rows(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in self._lines()]
        except ValueError as error:
            raise StorageError(f"{self.path} is damaged: {error}") from None

    def _lines(self) -> list[str]:
        """Whole lines only: the last may have been cut off by a crash."""
        if not self.path.exists():
            return []
        return [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def _rollouts(self, step: int, groups: list[Group]) -> None:
        """The first `log.rollouts` samples of the step, for people to read."""
        chosen = [(g.task, s) for g in groups for s in g.samples][: self.config.log.rollouts]
        with (self.out / "rollouts" / f"step-{step:06}.jsonl").open("w", encoding="utf-8", errors="replace") as f:
            for task, s in chosen:
                row = {
                    "step": step, "task": task.id, "prompt": task.prompt, "answer": task.answer, "text": s.text,
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


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
