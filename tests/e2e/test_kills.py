"""The whole of R1's pipeline, killed again and again: what comes out is what comes out of a run that is left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from real import command, rlreason

from rlreason import manifest, status

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# mini.yaml with all its stages, each of a few steps only.
SMALL = [
    "learner.workers=1", "rollout.workers=1", "eval.tasks=16", "loop.save_every=2",
    "cold.loop.steps=12", "second.loop.steps=12", "student.loop.steps=12",
    "reason.loop.steps=6", "reason.loop.groups=8", "reason.loop.samples=4", "reason.eval.every=2",
    "reason.algorithm.reference_every=3",
    "align.loop.steps=4", "align.loop.groups=8", "align.loop.samples=4", "align.eval.every=2",
    *(f"{stage}.{more}" for stage in ("harvest", "teach") for more in (
        "sample.tasks=48", "loop.groups=16", "sample.keep=all", "sample.least.format=0", "sample.least.language=0",
        "sample.least.readable=0")),
    "exam.eval.tasks=16", "exam.loop.groups=8", "finals.loop.groups=8",
]  # fmt: skip
KILLS = 10
RECIPE = "recipes/r1/mini.yaml"


def weights(out: Path) -> dict[str, str]:
    return {file.parents[2].name: manifest.checksum(file) for file in sorted(out.glob("*/weights/last/model.safetensors"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run = rlreason("train", RECIPE, f"out={out}", *SMALL, out=out, timeout=600)
    assert run.code == 0, run.text
    return run


def kill(process) -> None:
    """SIGKILL: the driver first, then every actor and helper that it started."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for one in below:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(below, timeout=20)


@pytest.mark.long
def test_ten_kills_change_nothing(whole, tmp_path):
    out, seed = tmp_path / "run", int(os.environ.get("RLREASON_CHAOS_SEED", time.time()))
    print(f"RLREASON_CHAOS_SEED={seed}")
    rng, done = random.Random(seed), 0
    for _ in range(KILLS):
        process = command("train", RECIPE, f"out={out}", *SMALL)
        try:
            # From a cold start to well inside a stage; a pipeline that is done by then is killed while it looks at itself.
            process.wait(timeout=rng.uniform(1, 2.2 * whole.seconds / KILLS))
        except subprocess.TimeoutExpired:
            kill(process)
        else:
            done += 1
            assert process.returncode == 0, process.stdout.read()
    last = rlreason("train", RECIPE, f"out={out}", *SMALL, out=out, timeout=600)
    assert last.code == 0, last.text
    assert done <= 2, "it was done before the kills were"
    assert weights(out) == weights(whole.out)
    assert len(weights(out)) == 5
    for name in ("harvest/samples.jsonl", "teach/samples.jsonl", "exam/answers.jsonl"):
        assert (out / name).read_bytes() == (whole.out / name).read_bytes(), name


def test_what_is_done_is_not_done_again(whole):
    again = rlreason("train", RECIPE, f"out={whole.out}", *SMALL, out=whole.out)
    assert again.code == 0, again.text
    assert again.seconds < 15
    assert "starting" not in again.text
    assert weights(whole.out) == weights(again.out)


def test_second_fine_tuning_starts_from_the_base_weights(whole):
    """By the digest that the learner itself worked out of the weights in its memory."""
    made = {name: manifest.read(whole.out / name)["weights"] for name in ("cold", "reason", "second", "align")}
    assert all(weights["begin"] != weights["end"] for weights in made.values())
    base = manifest.weights_of(whole.out / "base")
    assert made["second"]["begin"] == made["cold"]["begin"] == base
    assert made["reason"]["begin"] == made["cold"]["end"] != base
    assert made["align"]["begin"] == made["second"]["end"] != made["reason"]["end"]


def test_status_shows_the_graph(whole):
    shown = rlreason("status", whole.out, out=whole.out)
    assert shown.code == 0, shown.text
    found = {stage.name: stage for stage in status.stages(whole.out)}
    assert {stage.state for stage in found.values()} == {"done"}
    assert found["second"].takes == ["harvest"]
    assert found["release"].takes == ["align", "exam"]
    for name in found:
        assert name in shown.text


def test_a_changed_recipe_names_what_it_makes_stale_and_mixes_nothing(whole, tmp_path):
    """On a copy: the student's steps are changed; that and its examination are done again, and nothing else."""
    out = tmp_path / "copy"
    shutil.copytree(whole.out, out, symlinks=True)
    changed = [*SMALL, "student.loop.steps=14"]
    refused = rlreason("train", RECIPE, f"out={out}", *changed, out=out)
    assert refused.code == 2
    assert "student" in refused.text
    assert "loop.steps was 12, is 14" in refused.text
    assert "--redo" in refused.text
    assert "align" not in refused.text.partition("the recipe has changed")[2]
    redone = rlreason("train", RECIPE, "--redo", f"out={out}", *changed, out=out)
    assert redone.code == 0, redone.text
    assert redone.text.count("starting") == 2
    assert json.loads((out / "student" / "summary.json").read_text())["steps"] == 14
    assert {folder.name.split(".")[0] for folder in (out / "stale").iterdir()} == {"student", "finals"}
    old, new = weights(whole.out), weights(out)
    assert {name for name in old if old[name] != new[name]} == {"student"}


def test_a_signal_stops_between_two_steps_and_status_says_so(tmp_path):
    out = tmp_path / "run"
    process = command("train", RECIPE, f"out={out}", *SMALL)
    try:
        deadline = time.monotonic() + 120
        while not (out / "cold" / "metrics.jsonl").exists() or not (out / "cold" / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert status.stages(out)[0].state == "running"
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 75, text
    assert [stage.state for stage in status.stages(out)[:2]] == ["stopped", "waiting"]


def test_a_stage_that_made_the_model_worse_stops_the_pipeline_if_the_recipe_says_so(whole, tmp_path):
    """On a copy in which the alignment is said to have cost something; what is done stays done."""
    out = tmp_path / "copy"
    shutil.copytree(whole.out, out, symlinks=True)
    summary = out / "align" / "summary.json"
    told = json.loads(summary.read_text()) | {"regressions": ["sums: 0.900 -> 0.700"]}
    summary.write_text(json.dumps(told))
    stopped = rlreason("train", RECIPE, f"out={out}", *SMALL, "align.eval.gate=stop", out=out)
    assert stopped.code == 6, stopped.text
    assert "stage align made the model worse" in stopped.text
    assert "sums: 0.900 -> 0.700" in stopped.text
    on = rlreason("train", RECIPE, f"out={out}", *SMALL, "align.eval.gate=report", out=out)
    assert on.code == 0, on.text
    assert "starting" not in on.text
