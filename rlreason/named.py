"""Functions that a recipe names: one of ours, or a user's by its import path; and the options that it gives them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

# An option of one of these names means the same in all of our functions; of a user's nothing is known.
AT_LEAST = {"k": 1, "eps": 0, "low": 0, "high": 0, "cap": 0, "share": 0, "coefficient": 0, "tau_pos": 1e-6, "tau_neg": 1e-6}


def find(registry: Mapping[str, Callable[..., Any]], name: str) -> tuple[Callable[..., Any] | None, str]:
    """The function of that name, or what is wrong with it. A dotted name is imported: my_package.my_loss."""
    if name in registry:
        return registry[name], ""
    module, dot, attribute = name.rpartition(".")
    if not dot:
        ours = f"{', '.join(registry)}{near(name, registry)}"
        return None, f"{name!r} is not one of {ours}; nor of the form my_package.my_function"
    try:
        theirs = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        return None, f"{name}: {error}"
    return (theirs, "") if callable(theirs) else (None, f"{name} is not a function")


def found(registry: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    """The function of that name. Raises `ValueError`."""
    function, problem = find(registry, name)
    if function is None:
        raise ValueError(problem)
    return function


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function, with their defaults: its parameters that have one."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.default is not p.empty}


def wrong_options(function: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, problem) for what is wrong with the options that a recipe gives to `function`."""
    known = options(function)
    hints = {name: _hint(function, name) for name in known}
    least = AT_LEAST if function.__module__.startswith("rlreason.") else {}
    for name, value in given.items():
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            yield name, f"is no option of {function.__name__}{near(name, known)}; {has}"
            continue
        kind, choices = type(known[name]), get_args(hints.get(name))
        if choices and get_origin(hints[name]) is Literal:
            if value not in choices:
                yield name, f"{value!r} is not one of {', '.join(map(str, choices))}"
        elif kind in (bool, int, float, str) and not _fits(value, kind):
            yield name, f"{value!r} is not of the type {kind.__name__}"
        elif kind in (int, float) and value < least.get(name, -math.inf):
            yield name, f"{value:g} is below {least[name]:g}"


def _hint(function: Callable[..., Any], name: str) -> Any:
    """The Literal that an option is annotated with; other annotations may need modules that are not loaded."""
    note = inspect.signature(function).parameters[name].annotation
    if isinstance(note, str) and note.startswith("Literal["):
        return eval(note, {"Literal": Literal})
    return None if isinstance(note, str) else note


def near(name: str, names: Iterable[str]) -> str:
    """The name that was probably meant, as the end of a message; empty if none is like it."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))
