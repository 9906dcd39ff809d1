"""`make gpu-check` without a GPU: its own mechanics with a real run on a tiny model. What it shows of a GPU needs one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from real import ROOT

pytestmark = pytest.mark.e2e


def test_two_cases_on_a_cpu(tmp_path):
    out = tmp_path / "check"
    options = f"--device cpu --cases environment,canary-0.5b --out {out}"
    done = subprocess.run(
        ["make", "gpu-check", f"PYTHON={sys.executable}", f"VENV={tmp_path}", f"GPU_CHECK={options}"], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed; " in done.stdout
    found = json.loads((out / "gpu-check.json").read_text())
    assert found["machine"]["device"] == "cpu"
    environment, canary = found["cases"]
    assert "torch" in environment["numbers"]
    assert canary["numbers"]["steps"] == 3
    assert canary["numbers"]["policy_gap"] < 1e-3
    assert canary["numbers"]["canary gap"] < canary["numbers"]["of its tolerance"]
