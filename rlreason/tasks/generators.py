"""Tasks that are made rather than read: (number, options) -> Task, pure functions; the number decides everything."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import random
from collections.abc import Callable
from functools import partial

from rlreason import puzzles
from rlreason.config import TasksConfig
from rlreason.errors import RecipeError
from rlreason.types import Task

GYM = "gym."  # before the name of one of reasoning-gym's data sets


def sort(number: int, digits: int = 8, noise: float = 0.0) -> Task:
    """Sort the digits: `31024=` -> `01234`.

    A share `noise` of the demonstrations is wrong (two of the sorted digits change places), so that imitation alone
    cannot pass 1 - noise.
    """
    rng = random.Random(number)
    given = [rng.randrange(10) for _ in range(digits)]
    answer = "".join(map(str, sorted(given)))
    shown = list(answer)
    if rng.random() < noise:
        unequal = [i for i in range(digits - 1) if shown[i] != shown[i + 1]]
        if unequal:
            i = rng.choice(unequal)
            shown[i], shown[i + 1] = shown[i + 1], shown[i]
    return Task(f"sort-{number}", "".join(map(str, given)) + "=", answer, "".join(shown))


def add(number: int, digits: int = 2, noise: float = 0.0) -> Task:
    """Add two numbers, thinking aloud from the last digit on:

        47+85= -> <think>7+5=12 4+8+1=13 </think><answer>132</answer>

    A share `noise` of the demonstrations thinks right and then answers carelessly: the last digit is off by one.
    """
    rng = random.Random(number)
    low, high = 10 ** (digits - 1), 10**digits - 1
    a, b = rng.randint(low, high), rng.randint(low, high)
    thought, carry = "", 0
    for column in range(digits):
        x, y = a // 10**column % 10, b // 10**column % 10
        total = x + y + carry
        thought += f"{x}+{y}{'+1' if carry else ''}={total} "
        carry = total // 10
    shown = list(str(a + b))
    if rng.random() < noise:
        shown[-1] = str((int(shown[-1]) + rng.choice([1, 9])) % 10)
    response = f"<think>{thought}</think><answer>{''.join(shown)}</answer>"
    return Task(f"add-{number}", f"{a}+{b}=", str(a + b), response)


GENERATORS: dict[str, Callable[..., Task]] = {f.__name__: f for f in (sort, add)}


def generator(config: TasksConfig) -> Callable[..., Task]:
    """The function that `tasks.generate` names: one of ours, `gym.<data set>`, or `my_package.my_generator`."""
    if config.generate in GENERATORS:
        return GENERATORS[config.generate]
    if config.generate.startswith(GYM):
        return _gym(config.generate.removeprefix(GYM))
    module, _, name = config.generate.rpartition(".")
    try:
        found: Callable[..., Task] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError([f"tasks.generate: {config.generate!r} is not one of {', '.join(GENERATORS)}, nor "
                           f"gym.<a data set of reasoning-gym>, and cannot be imported: {error}"]) from None  # fmt: skip
    return found


def _gym(name: str) -> Callable[..., Task]:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise RecipeError([f"tasks.generate: gym.{name} needs the package reasoning-gym: pip install reasoning-gym"])
    if name not in (names := puzzles.names()):
        near = [GYM + n for n in difflib.get_close_matches(name, names, n=3)]
        raise RecipeError([f"tasks.generate: reasoning-gym has no data set {name!r}"
                           + (f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(names)}")])  # fmt: skip
    return partial(puzzles.puzzle, name)
