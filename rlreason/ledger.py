"""What became of every task that was asked, step by step (ledger.jsonl): was one trained on twice, or lost?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlreason import checkpoint
from rlreason.errors import StorageError


@dataclass(frozen=True)
class Audit:
    """asked = trained + dropped + pending, by task."""

    asked: int
    trained: int
    dropped: dict[str, int]  # by reason
    pending: int
    wrong: list[str]  # what does not add up

    def __str__(self) -> str:
        dropped = "".join(f", {number} dropped ({why})" for why, number in self.dropped.items())
        return f"{self.asked} tasks asked: {self.trained} trained on{dropped}, {self.pending} pending"


def audit(out: Path) -> Audit:
    """The whole ledger of a run, over all its restarts."""
    path = out / "ledger.jsonl"
    consumed: dict[int, int] = {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for folder in checkpoint.committed(out / "checkpoints"):
            state = checkpoint.read_json(folder / checkpoint.MANIFEST)["state"]
            consumed[state["version"]] = state["cursor"]
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{path}, or a manifest, cannot be read: {error}") from None
    return check(rows, consumed)


def check(rows: Iterable[dict[str, Any]], consumed: Mapping[int, int] | None = None) -> Audit:
    """`rows`, one per step: {step, trained: [id], dropped: {id: why}, pending: [id]}. `consumed`: how many tasks the run
    had taken by some of the steps, as its checkpoints have it; the stream of tasks goes on from there."""
    trained: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    why: Counter[str] = Counter()
    wrong: list[str] = []
    step, pending = 0, list[str]()
    for row in rows:
        if row["step"] != step + 1:
            wrong.append(f"step {row['step']} follows step {step}")
        step = row["step"]
        trained.update(row["trained"])
        dropped.update(row["dropped"].keys())
        why.update(row["dropped"].values())
        if lost := {*pending} - {*row["trained"], *row["dropped"], *row["pending"]}:
            wrong.append(f"step {step}: lost without a reason: {', '.join(sorted(lost))}")
        pending = row["pending"]
        told = trained.total() + dropped.total()
        if (taken := (consumed or {}).get(step, told)) != told:
            wrong.append(f"step {step}: {taken} tasks were taken by then, and {told} are told of")
    wrong += [f"{name} was trained on {times} times" for name, times in trained.items() if times > 1]
    wrong += [f"{name} was trained on, and dropped" for name in trained.keys() & dropped.keys()]
    wrong += [f"{name} was consumed, and is pending" for name in {*pending} & (trained.keys() | dropped.keys())]
    seen = trained.keys() | dropped.keys() | {*pending}
    return Audit(len(seen), trained.total(), dict(why), len(pending), wrong)
