"""The catalogue of faults, as far as it needs no engine: each fault happens for real, and what follows is looked at.

`make chaos` runs all of it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE / "chaos"), str(HERE / "e2e")]


def module(path: Path) -> ModuleType:
    """Imported by its path, and under a name of its own: the benchmarks have a `rewards` too."""
    spec = importlib.util.spec_from_file_location(f"chaos_{path.stem}", path)
    assert spec
    assert spec.loader
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


SECTIONS = [path for path in sorted((HERE / "chaos").glob("*.py")) if "\nCASES" in path.read_text()]  # others are scripts
CASES: list[Any] = [case for path in SECTIONS for case in module(path).CASES]


@pytest.mark.parametrize("case", [c for c in CASES if not c.engines], ids=lambda c: f"{c.number:02} {c.fault}")
def test_a_fault_ends_as_expected(case, tmp_path):
    print(case.check(tmp_path).text)


def test_a_case_is_listed_once_and_says_what_is_expected():
    assert CASES
    assert len({(case.number, case.fault) for case in CASES}) == len(CASES)
    assert all(case.expected and 1 <= case.number <= 88 for case in CASES)
