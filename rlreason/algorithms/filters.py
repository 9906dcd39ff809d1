"""Filters: is a group worth training on?"""

from __future__ import annotations

from collections.abc import Callable

from rlreason.types import Group


def answered(group: Group) -> bool:
    """Every group with an answer that could be judged."""
    return bool(group.judged())


def differ(group: Group) -> bool:
    """Groups whose rewards differ: the others have advantage 0 (dynamic sampling, DAPO, 2503.14476)."""
    return len({s.reward for s in group.judged()}) > 1


FILTERS: dict[str, Callable[[Group], bool]] = {"all": answered, "differ": differ}
