"""Is the answer of a sensible length? Lengths are in tokens; `limit` is the most that an answer may have."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any

from rlreason.types import Task


def cosine(
    task: Task,
    text: str,
    *,
    length: int,
    limit: int,
    truncated: bool,
    of: str = "math",
    correct_short: float = 1.0,
    correct_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
    exceeded: float = -1.0,
) -> float | None:
    """The cosine reward of "Demystifying Long CoT" (2502.03373): right ones short, wrong ones long, none over the limit.

        r(short, long) = long + (short - long) · (1 + cos(π · length / limit)) / 2

    with the two `correct_…` values where the reward `of` is above 0.5, the two `wrong_…` values elsewhere, and
    `exceeded` for a truncated answer. The defaults are those of open-r1, which has no value for `exceeded`; the paper
    uses 2, 1, -10, 0 and -10. `None` where `of` cannot judge. `of` is judged with the defaults of its own options.
    Raises `ValueError` if `of` is no reward, one without whose options nothing goes, or one that has to wait.
    """
    judge, asked = _known(of)
    facts = {"length": length, "limit": limit, "truncated": truncated}
    right = judge(task, text, **{fact: facts[fact] for fact in asked})
    if right is None:
        return None
    if truncated:
        return exceeded
    short, long = (correct_short, correct_long) if right > 0.5 else (wrong_short, wrong_long)
    return long + (short - long) * (1 + math.cos(math.pi * length / limit)) / 2


def soft_overlong(task: Task, text: str, *, length: int, limit: int, buffer: int = 0) -> float:
    """The soft overlong punishment of DAPO (2503.14476, eq. 13).

        0                                   length <= limit - buffer
        (limit - buffer - length) / buffer  up to the limit
        -1                                  from there on, which is where truncated answers are

    `buffer` is in tokens; 0 takes a fifth of the limit (DAPO: 4,096 of 20,480).
    Raises `ValueError` for a buffer below 0 or above the limit.
    """
    return overlong_penalty(length, limit, buffer)


def overlong_penalty(length: int, limit: int, buffer: int = 0) -> float:
    """The formula of `soft_overlong`, which `algorithm.overlong: soft` takes off the reward as well."""
    if not 0 <= buffer <= limit:
        raise ValueError(f"buffer: {buffer} is not between 0 and rollout.max_tokens, which is {limit}")
    width = buffer or limit / 5
    return min(0.0, max(-1.0, (limit - width - length) / width))


@cache
def _known(name: str) -> tuple[Any, tuple[str, ...]]:
    """The reward of that name, and the facts that it asks for."""
    from rlreason.rewards import FACTS, find, wanted  # here, for that module imports this one

    function, problem = find(name)
    if function is None:
        raise ValueError(f"of: {problem}")
    parameters = wanted(function)[0]
    options = [p for p, parameter in parameters.items() if p not in FACTS and parameter.default is parameter.empty]
    if options or inspect.iscoroutinefunction(function):
        raise ValueError(f"of: {name} cannot tell by itself, and at once, whether an answer is right")
    return function, tuple(fact for fact in FACTS if fact in parameters)
