"""`make bench`: a step beside the same work without a framework."""

import re
import subprocess

import pytest
from real import ROOT

pytestmark = pytest.mark.e2e


def test_a_step_costs_at_most_half_as_much_again_as_the_bare_work():
    done = subprocess.run(["make", "bench", "CASES=1m"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(re.search(r"([\d.]+) of the sum", done.stdout)[1]) <= 1.5, done.stdout
    assert float(re.search(r" s, ([\d.]+) \|", done.stdout)[1]) <= 1.7, f"beside both libraries tuned: {done.stdout}"
