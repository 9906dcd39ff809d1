"""Python's values as JSON and back, of Python's own types alone: what crosses between a program and its tests."""

from __future__ import annotations

import datetime
import itertools
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

GIVEN = {  # what tests may name without importing it
    **dict.fromkeys(("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple"), "collections"),
    **dict.fromkeys(("Any", "Callable", "Dict", "Iterable", "List", "Optional", "Sequence", "Set", "Tuple", "Union"), "typing"),
    "Decimal": "decimal", "Fraction": "fractions", "isclose": "math",
}  # fmt: skip
DICTS: tuple[type[dict[Any, Any]], ...] = (Counter, OrderedDict, dict)  # the first that fits
SEQUENCES: tuple[type[Any], ...] = (tuple, set, frozenset)
DATES: tuple[type[Any], ...] = (datetime.datetime, datetime.date, datetime.time)


def to_json(value: Any, refer: Callable[[Any], Any]) -> Any:
    """A value as plain JSON; what is no plain data as `refer` has it."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return {"int": hex(value)} if abs(value) >> 256 else int(value)  # decimal digits of a huge one are limited
    if isinstance(value, list):
        return [to_json(v, refer) for v in value]
    if isinstance(value, defaultdict):
        factory = value.default_factory
        name = factory.__name__ if isinstance(factory, type) and factory in (int, float, str, list, dict, set) else None
        return {"defaultdict": [name, [[to_json(k, refer), to_json(v, refer)] for k, v in value.items()]]}
    if isinstance(value, dict):
        pairs = [[to_json(k, refer), to_json(v, refer)] for k, v in value.items()]
        return {next(t for t in DICTS if isinstance(value, t)).__name__: pairs}
    if isinstance(value, SEQUENCES):
        return {next(t for t in SEQUENCES if isinstance(value, t)).__name__: [to_json(v, refer) for v in value]}
    if isinstance(value, deque):
        return {"deque": [[to_json(v, refer) for v in value], value.maxlen]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Fraction):
        return {"Fraction": [to_json(value.numerator, refer), to_json(value.denominator, refer)]}
    if isinstance(value, Decimal):
        return {"Decimal": str(value)}
    if isinstance(value, range):
        return {"range": [to_json(n, refer) for n in (value.start, value.stop, value.step)]}
    if isinstance(value, DATES):
        return {next(t for t in DATES if isinstance(value, t)).__name__: value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    return refer(value)


def from_json(value: Any, refer: Callable[[str, Any], Any]) -> Any:
    """The value again, of Python's own types alone; what `to_json` has not written itself as `refer` has it."""
    if isinstance(value, list):
        return [from_json(v, refer) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "int":
            return int(inner, 16)
        case "dict" | "Counter" | "OrderedDict":
            made = next(t for t in DICTS if t.__name__ == kind)()
            made.update({from_json(k, refer): from_json(v, refer) for k, v in inner})
            return made
        case "defaultdict":
            factory = {t.__name__: t for t in (int, float, str, list, dict, set)}.get(inner[0])
            return defaultdict(factory, {from_json(k, refer): from_json(v, refer) for k, v in inner[1]})
        case "tuple" | "set" | "frozenset":
            return next(t for t in SEQUENCES if t.__name__ == kind)(from_json(v, refer) for v in inner)
        case "deque":
            return deque((from_json(v, refer) for v in inner[0]), inner[1])
        case "bytes":
            return bytes.fromhex(inner)
        case "complex":
            return complex(*inner)
        case "Fraction":
            return Fraction(*(int(from_json(n, refer)) for n in inner))
        case "Decimal":
            return Decimal(inner)
        case "range":
            return range(*(from_json(n, refer) for n in inner))
        case "datetime" | "date" | "time":
            return next(t for t in DATES if t.__name__ == kind).fromisoformat(inner)
        case "timedelta":
            return datetime.timedelta(*inner)
    return refer(kind, inner)


def same(value: Any, expected: Any, tolerance: float) -> bool:
    """Equal, or, for numbers however deep in lists and tuples, equal within a relative or absolute tolerance."""
    if isinstance(expected, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(expected, list | tuple) and type(value) is type(expected):
        return len(value) == len(expected) and all(map(same, value, expected, itertools.repeat(tolerance)))
    return bool(value == expected)


def leave(old: Any, new: Any) -> None:
    """Put what a function has made of an argument into the tests' own list, dict, set or deque."""
    if type(old) is type(new) and isinstance(old, list | dict | set | deque):
        old.clear()
        old.extend(new) if isinstance(old, list | deque) else old.update(new)
