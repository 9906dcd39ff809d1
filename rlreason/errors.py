"""How a run can end, other than well: one screen of what, where, why and what to do, and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SCREEN = 40  # problems that are told at once


class Lost(Exception):
    """A process that died, hangs or cannot go on. Another can take its place, so this need not be the end of a run."""

    def __init__(self, name: str, why: str, alive: bool = False, words: str = ""):
        """`alive`: it is still there, and has to be killed. `words`: its last ones, from its log."""
        super().__init__(f"{name} {why}" + f"\n{words}" * bool(words))
        self.name, self.why, self.alive = name, why, alive

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.why, self.alive)


class Wounded(Exception):
    """What a process says of itself when it cannot go on, though it lives."""


class WeightsUnavailable(Exception):
    """Published weights that are not there any more, or are being replaced: whoever reads them has a mixture, or nothing."""


class Failure(Exception):
    """An end that is told, not traced. `code` is the process's exit code."""

    code = 1


class RecipeError(Failure):
    """What is wrong with a recipe or its inputs, all of it at once."""

    code = 2

    def __init__(self, problems: Sequence[str]):
        rest = [f"… and {len(problems) - SCREEN} more"] * (len(problems) > SCREEN)
        super().__init__("\n".join([*(clipped(problem, 3000) for problem in problems[:SCREEN]), *rest]))
        self.problems = list(problems)


class ResourceError(Failure):
    """The machine or the cluster does not have what the recipe asks for."""

    code = 3


class RolloutError(Failure):
    """The engines cannot answer."""

    code = 4


class StorageError(Failure):
    """What has to be kept cannot be written, or what was kept cannot be read."""

    code = 5


class Regressed(Failure):
    """Training made the model worse in a domain, and the recipe says that this stops the pipeline."""

    code = 6

    def __init__(self, what: str, worse: Sequence[str], advice: str):
        super().__init__("\n".join([what, *(f"    {one}" for one in worse), advice]))


class Interrupted(Failure):
    """Asked to stop, and everything is committed: the same command goes on."""

    code = 75


def short(what: Any, most: int = 300) -> str:
    """`what` on one line, of so many characters at most: a value in a message may be a megabyte."""
    return clipped(" ".join(clipped(str(what), 10 * most).split()), most)


def clipped(text: str, most: int) -> str:
    """The beginning and the end of a text of more than so many characters."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-(most // 2) :]}"
