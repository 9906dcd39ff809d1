"""The lines at which `tests/chaos` kills processes: a function that was renamed would leave nothing to kill."""

import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import CodeType

import pytest

sys.path.insert(0, str(Path(__file__).parent / "chaos"))

import killpoints


def functions(code: CodeType) -> set[str]:
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return {code.co_qualname}.union(*map(functions, inner))


PLACES = [*killpoints.WRITING, *chain.from_iterable(places for _, _, places in killpoints.ROLES.values())]


@pytest.mark.parametrize("place", PLACES)
def test_each_function_at_whose_lines_a_process_is_killed_exists(place):
    file, name = place.split(":")
    package, _, path = file.partition("/")
    source = Path(find_spec(package).origin).parent / path
    found = functions(compile(source.read_text(), source, "exec"))
    assert not name or any(f"{one}.".startswith(f"{name}.") for one in found)
