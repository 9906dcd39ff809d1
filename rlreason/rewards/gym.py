"""reasoning-gym's puzzles, scored by the scorers that come with them."""

from __future__ import annotations

import json
from typing import Any

from rlreason.puzzles import dataset
from rlreason.rewards.answer import final
from rlreason.types import Task

TUPLES = ("arc_agi", "rearc")  # their scorers compare with tuples, which JSON turned into lists
BLIND = ("game_of_life_halting",)  # its scorer takes any text at all for True, so that texts are compared instead


def gym(task: Task, text: str) -> float | None:
    """reasoning-gym's own score of the final answer, 0 to 1; `None` for a task that is none of its puzzles.

    An answer over which the scorer stumbles earns 0: some (prime_factorization, boxnet, coin_flip, game_of_life) raise
    where an answer is merely malformed.
    """
    if not task.info or "gym" not in task.info:
        return None
    name, entry = task.info["gym"], task.info["entry"]
    scorer = dataset(name, json.dumps(task.info["options"], sort_keys=True), 0)
    kind = entry["metadata"].get("source_dataset", name)  # composite mixes several
    if kind in BLIND:
        return float(final(text).lower() == str(entry["answer"]).lower())
    if kind in TUPLES:
        entry = entry | {"metadata": _tuples(entry["metadata"])}
    try:
        return float(scorer.score_answer(final(text), entry))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return 0.0


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
