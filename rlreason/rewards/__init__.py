"""Rewards: pure functions (task, text) -> float, chosen by name; `None` means that it cannot be judged."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rlreason import named
from rlreason.rewards import (
    answer,
    choice,
    code,
    form,
    gym,
    judge,
    language,
    length,
    maths,
    preference,
    readable,
    repetition,
    scorer,
)

Reward = Callable[..., float | Awaitable[float | None] | None]  # of (task, text, *, facts and options)
BUILT_IN: tuple[Reward, ...] = (
    answer.exact, answer.numeric, maths.math, choice.choice, code.code, gym.gym, judge.judge,
    preference.helpful, preference.harmless, scorer.scorer,
    form.format, language.language, readable.readable, length.cosine, length.soft_overlong, repetition.repetition,
)  # fmt: skip
REWARDS: dict[str, Reward] = {f.__name__: f for f in BUILT_IN}
FACTS = ("length", "limit", "truncated")  # answer tokens, rollout.max_tokens, was it cut off there: handed in if asked for


def find(name: str) -> tuple[Reward | None, str]:
    """The reward of that name, or what is wrong with it. A dotted name is imported: my_package.my_reward."""
    try:
        return named.find(REWARDS, name)
    except Exception as error:  # importing runs a user's code, which may raise anything
        return None, f"{name}: {type(error).__name__}: {error}"


def wanted(reward: Reward) -> tuple[dict[str, inspect.Parameter], bool]:
    """What a reward takes beside (task, text), by name; and whether it takes anything else too (**options)."""
    parameters = [*inspect.signature(reward).parameters.values()]
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return {p.name: p for p in parameters[2:] if p.kind in kinds}, any(p.kind is p.VAR_KEYWORD for p in parameters)


def wrong_options(name: str, options: Any) -> str:
    """What is wrong with the options that a recipe gives to a reward, `rewards.options.<name>`; "" if nothing is.

    `timeout` (seconds for one answer, in place of `rewards.timeout`) is an option of every reward; one that has a
    `timeout` itself sees to it by itself, and is given `rewards.timeout` at the least before it is killed.
    """
    reward, problem = find(name)
    if reward is None:
        return problem
    if not isinstance(options, Mapping):
        return f"{options!r:.80} is not a mapping of options to values"
    parameters, more = wanted(reward)
    if told := [option for option in options if option in FACTS]:
        return f"{told[0]}: is a fact about each answer, and not for a recipe to say"
    required = [p for p in parameters if p not in FACTS and parameters[p].default is inspect.Parameter.empty]
    if missing := [p for p in required if p not in options]:
        return f"{name} has to be told its {' and '.join(missing)}"
    if wrong := [p for p in required if parameters[p].annotation in (str, "str") and not isinstance(options[p], str)]:
        return f"{wrong[0]}: {options[wrong[0]]!r:.80} is not of the type str"
    timeout = options.get("timeout", 1)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        return f"timeout: {timeout!r} is not a number of seconds above 0"
    if reward is length.cosine and (problem := find(str(options.get("of", "math")))[1]):
        return f"of: {problem}"
    anyone = [*required, "timeout"]
    rest = {o: value for o, value in options.items() if o not in anyone and (o in parameters or not more)}
    return next((f"{option}: {problem}" for option, problem in named.wrong_options(reward, rest)), "")


def weigh(weights: Mapping[str, float], parts: Mapping[str, float | None]) -> float | None:
    """The weighted sum of a reward's parts.

    One part that cannot be judged makes the whole unjudged: a partial sum would compare unlike things within a group.
    A part of weight 0 is only logged, and takes nothing away.
    """
    total = 0.0
    for name, weight in weights.items():
        if not weight:
            continue
        part = parts[name]
        if part is None:
            return None
        total += weight * part
    return total
