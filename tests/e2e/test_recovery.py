"""The heart of the catalogue of faults with the real parts; `make chaos` runs all of it."""

import subprocess
import sys
from pathlib import Path

import pytest
from real import ROOT

pytestmark = pytest.mark.e2e
sys.path.insert(0, str(ROOT / "tests" / "chaos"))

import drivers  # noqa: E402
import engines  # noqa: E402
import learners  # noqa: E402


def cases(section, *checks):
    return [pytest.param(case, id=case.fault) for case in section.CASES if case.check in checks]


@pytest.mark.parametrize("case", [
    *cases(engines, engines.killed_while_generating),
    *cases(learners, learners.a_rank_dies, learners.both_die, learners.diverges_now_and_then),
    *cases(drivers, drivers.asked_to_stop_while_ray_starts, drivers.killed_while_ray_starts),
])  # fmt: skip
def test_a_fault_ends_as_expected(case, tmp_path):
    print(case.check(tmp_path).text)


def test_make_chaos_runs_the_cases_that_are_asked_for():
    """66: the driver is killed, in a step and while Ray starts, and the same command goes on."""
    page = Path(ROOT / "docs" / "reliability.md").read_text()
    done = subprocess.run(["make", "chaos", "CASES=66"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cases as expected" in done.stdout
    assert (ROOT / "docs" / "reliability.md").read_text() == page, "the page is written when all cases were run"
