"""Several sources of tasks in one stream: what a recipe may say of each, and whose turn it is at every position."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from rlreason.config import FIELDS, TasksConfig
from rlreason.errors import RecipeError
from rlreason.named import near
from rlreason.rewards import find

LONGEST = 1_000_000  # positions after which a schedule has to repeat: it is kept in memory
KINDS: dict[str, tuple[type, ...]] = {
    "weight": (int, float), "path": (str,), "split": (str,), "generate": (str,), "options": (dict,), "fields": (dict,),
    "reward": (str, list, dict), "template": (str,),
}  # fmt: skip


class Schedule:
    """Whose turn it is: position -> (source, how many turns it had before), in constant time.

    Shares are exact: after every number of positions a source has had its share of them, less than one turn off, and
    after a period (the sum of the weights, as the smallest whole numbers in proportion) precisely its weight.
    """

    def __init__(self, weights: list[Fraction]):
        unit = math.lcm(*(w.denominator for w in weights))
        counts = [int(w * unit) for w in weights]
        divisor = math.gcd(*counts)
        self.counts = [c // divisor for c in counts]
        self.period = sum(self.counts)
        if self.period > LONGEST:
            raise RecipeError([f"tasks.mixture: weights as fine as {', '.join(f'{float(w):g}' for w in weights)} come out even "
                               f"only after {self.period} tasks; round them, so that it takes {LONGEST} at most"])  # fmt: skip
        self.turns, self.before = array("H", _turns(self.counts)), array("I")
        had = [0] * len(weights)
        for source in self.turns:
            self.before.append(had[source])
            had[source] += 1

    def __call__(self, position: int) -> tuple[int, int]:
        lap, slot = divmod(position, self.period)
        source = self.turns[slot]
        return source, lap * self.counts[source] + self.before[slot]


def _turns(counts: list[int]) -> Iterator[int]:
    """Earliest deadline first: turn j (from 1) of a source with share s belongs into slots ⌊(j-1)/s⌋ … ⌈j/s⌉ - 1.

    Those are the slots that keep it less than one turn from its share, and all turns find one (Tijdeman, "The chairman
    assignment problem", Discrete Mathematics 32, 1980; as just-in-time scheduling: Steiner & Yeomans 1993).
    """
    period = sum(counts)
    waiting = [(0, source, 1) for source in range(len(counts))]  # (first slot, source, turn)
    ready: list[tuple[int, int, int]] = []  # (last slot, source, turn)
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            _, source, turn = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-turn * period // counts[source]) - 1, source, turn))
        _, source, turn = heapq.heappop(ready)
        yield source
        if turn < counts[source]:
            heapq.heappush(waiting, (turn * period // counts[source], source, turn + 1))


def sources(config: TasksConfig) -> tuple[dict[str, TasksConfig], list[Fraction]]:
    """Each source as a `TasksConfig` of its own, and the weights. What a source does not say, `tasks` says.

    Raises `RecipeError` with every problem and its key.
    """
    parsed: dict[str, TasksConfig] = {}
    weights: list[Fraction] = []
    problems: list[str] = []
    for name, given in config.mixture.items():
        key = f"tasks.mixture.{name}"
        if wrong := list(_wrong(key, given)):
            problems += wrong
            continue
        said = dict(given)
        weights.append(Fraction(str(said.pop("weight", 1))))
        said["reward"] = rewards(said["reward"]) if "reward" in said else {}  # {}: what tasks.reward says
        parsed[str(name)] = replace(config, mixture={}, **said)
    if problems:
        raise RecipeError(problems)
    return parsed, weights


def _wrong(key: str, given: Any) -> Iterator[str]:
    if not isinstance(given, dict):
        yield f"{key}: expected a mapping of {', '.join(KINDS)}, not {given!r}"
        return
    for name, value in given.items():
        fits = not isinstance(value, bool) and isinstance(value, KINDS.get(name, ()))
        if name not in KINDS:
            yield f"{key}.{name}: there is no such option of a source{near(str(name), KINDS)}"
        elif not fits:
            yield f"{key}.{name}: {value!r} is not {' or '.join(kind.__name__ for kind in KINDS[name])}"
        elif name == "weight" and not 0 < value < math.inf:
            yield f"{key}.weight: {value} is not above 0"
        elif name == "template" and value and "{prompt}" not in value:
            yield f"{key}.template: has no {{prompt}} in it"
        elif name == "fields":
            yield from (f"{key}.fields.{field}: is not one of {', '.join(FIELDS)}" for field in value if field not in FIELDS)
        elif name == "reward":
            try:
                yield from (f"{key}.reward: {problem}" for reward in rewards(value) if (problem := find(reward)[1]))
            except ValueError as error:
                yield f"{key}.{error}"
    if bool(given.get("path")) == bool(given.get("generate")):
        yield f"{key}.path: say where its tasks come from: either path or generate"


def rewards(given: Any, called: str = "reward") -> dict[str, float]:
    """Weights by name, of a name, a list of names, or a mapping. Raises `ValueError` for anything else.

    A recipe's mapping comes nested where a name has dots ({my_package: {my_reward: 1}}), and Parquet's with None for
    the names that only other rows have.
    """
    if isinstance(given, str):
        return {given: 1.0}
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        return dict.fromkeys(given, 1.0)
    if isinstance(given, dict):
        flat = dict(_flat(given))
        if all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in flat.values()):
            return {name: float(weight) for name, weight in flat.items()}
    raise ValueError(f"{called} is neither a name, nor a list of names, nor weights by name")


def _flat(given: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value
