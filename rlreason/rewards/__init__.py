"""Rewards: pure functions (task, text) -> float, chosen by name; `None` means that it cannot be judged."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping

from rlreason.rewards.answer import exact, numeric
from rlreason.rewards.form import format
from rlreason.types import Task

Reward = Callable[[Task, str], float | None]
REWARDS: dict[str, Reward] = {f.__name__: f for f in (exact, numeric, format)}


def find(name: str) -> tuple[Reward | None, str]:
    """The reward of that name, or what is wrong with it. A dotted name is imported: my_package.my_reward."""
    if name in REWARDS:
        return REWARDS[name], ""
    module, dot, attribute = name.rpartition(".")
    if not dot:
        return None, f"{name!r} is not one of {', '.join(REWARDS)}, nor of the form my_package.my_reward"
    try:
        return getattr(importlib.import_module(module), attribute), ""
    except (ImportError, AttributeError) as error:
        return None, f"{name}: {error}"


def judge(task: Task, text: str, weights: Mapping[str, float]) -> tuple[float | None, dict[str, float | None]]:
    """The reward of an answer (the weighted sum of its parts), and the parts.

    `task.reward`, where the task has one, takes the place of `weights`. One part that cannot be judged makes the
    whole unjudged: a partial sum would compare unlike things within a group.
    """
    parts: dict[str, float | None] = {}
    total: float | None = 0.0
    for name, weight in (task.reward or weights).items():
        function, problem = find(name)
        if function is None:
            raise ValueError(f"task {task.id}: {problem}")
        part = parts[name] = function(task, text)
        if part is not None and (isinstance(part, str) or not math.isfinite(part)):
            raise ValueError(f"the reward {name} gave {part!r} to an answer of task {task.id}; it has to be a finite number, "
                             "or None where it cannot judge")  # fmt: skip
        total = None if part is None or total is None else total + weight * part
    return total, parts
