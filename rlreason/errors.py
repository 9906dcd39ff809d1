"""How a run can end, other than well: one screen of what, where, why and what to do, and an exit code."""

from __future__ import annotations

from collections.abc import Sequence


class Failure(Exception):
    """An end that is told, not traced. `code` is the process's exit code."""

    code = 1


class RecipeError(Failure):
    """What is wrong with a recipe or its inputs, all of it at once."""

    code = 2

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
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
