"""The main job: from one command a model learns to reason."""

import json
import subprocess
import time

import pytest
from real import ROOT, Run, rlreason

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
OUT = ROOT / "runs" / "quickstart"


@pytest.fixture(scope="module")
def quickstart() -> Run:
    started = time.monotonic()
    done = subprocess.run(["make", "quickstart"], cwd=ROOT, capture_output=True, text=True, check=False)
    return Run(OUT, done.returncode, done.stdout + done.stderr, time.monotonic() - started)


def rows(stage: str) -> list[dict]:
    return [json.loads(line) for line in (OUT / stage / "metrics.jsonl").read_text().splitlines()]


def test_a_model_from_scratch_learns_to_reason(quickstart):
    assert quickstart.code == 0, quickstart.text
    before, after = quickstart.summary["accuracy_before"], quickstart.summary["accuracy_after"]
    assert before["mean"] <= 0.5
    assert after["mean"] >= 0.9
    assert (before["n"], after["n"]) == (512, 512)
    assert f"accuracy before: {before['mean']:.3f}" in quickstart.text
    assert f"accuracy after: {after['mean']:.3f}" in quickstart.text
    assert str(OUT / "report.html") in quickstart.text


def test_every_step_is_on_policy(quickstart):
    gaps = [row["policy_gap"] for row in rows("reason")]
    assert len(gaps) == 60
    assert max(gaps) < 1e-5


def test_it_is_quick(quickstart):
    assert quickstart.summary["seconds_to_first_step"] < 45
    assert quickstart.seconds < 360


@pytest.mark.long
def test_as_much_time_of_imitation_does_not_do_it(quickstart, tmp_path):
    spent = sum(row["time/step"] for row in rows("reason"))
    out = tmp_path / "control"
    control = rlreason(
        "train", "recipes/quickstart-control.yaml", f"model={OUT / 'cold' / 'weights' / 'last'}", f"out={out}",
        f"loop.seconds={spent + 10}", out=out, timeout=600,
    )  # fmt: skip
    assert control.code == 0, control.text
    assert sum(row["time/step"] for row in control.rows) >= spent
    assert quickstart.summary["accuracy_after"]["mean"] >= control.summary["accuracy_after"]["mean"] + 0.25
