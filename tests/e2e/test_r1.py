"""R1 in miniature, and what else could have become of its student: does the recipe do what the paper says it does?"""

import json
from pathlib import Path

import pytest
from real import ROOT, Run, rlreason

from rlreason import manifest

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]
OUT = ROOT / "runs" / "r1-mini"


@pytest.fixture(scope="module")
def mini() -> Run:
    run = rlreason("train", "recipes/r1/mini.yaml", "--fresh", out=OUT, timeout=1400)
    assert run.code == 0, run.text
    return run


@pytest.fixture(scope="module")
def control(mini, tmp_path_factory) -> Path:
    """RL alone gets the time that the student was taught, its own cold start not counted."""
    out = tmp_path_factory.mktemp("control") / "run"
    taught = sum(row["time/step"] for row in rows("student"))
    run = rlreason("train", "recipes/r1/mini-control.yaml", f"out={out}", f"alone.loop.seconds={taught}", out=out, timeout=900)
    assert run.code == 0, run.text
    return out


def read(path: Path):
    return json.loads(path.read_text())


def rows(stage: str, out: Path = OUT) -> list[dict]:
    return [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]


def score(stage: str, name: str = "pass@1", domain: str = "") -> float:
    scores = read(OUT / stage / "scores.json")
    return (scores["domains"][domain] if domain else scores["scores"])[name]["mean"]


def test_every_stage_ends_and_the_model_learns_to_reason(mini):
    stages = read(OUT / "summary.json")["stages"]
    assert stages == ["cold", "reason", "harvest", "second", "align", "exam", "release", "teach", "student", "finals"]
    assert {manifest.read(OUT / name)["state"] for name in stages} == {"done"}
    cold = read(OUT / "cold" / "evaluations" / "after.json")["accuracy"]["mean"]
    assert 0.2 < cold < 0.5
    assert score("exam") >= 2 * cold
    assert score("exam") >= 0.85
    assert score("exam", "format") >= 0.95


def test_language_becomes_consistent(mini):
    """Half of the demonstrations mix two alphabets; the reward of R1 (Nature, eq. 7) makes one of it."""
    before, after = (
        read(OUT / "reason" / "evaluations" / f"{when}.json")["scores"]["language"]["mean"] for when in ("before", "after")
    )
    assert before < 0.9
    assert after >= 0.95


def test_rl_learns_preferences_beside_rules(mini):
    before, after = (
        read(OUT / "align" / "evaluations" / f"{when}.json")["domains"]["greetings"] for when in ("before", "after")
    )
    assert after["mean"]["mean"] > before["mean"]["mean"] + 0.1
    assert score("exam", "miniature.harmless") > 0.9


def test_what_is_harvested_is_right_and_readable(mini):
    kept = [json.loads(line) for line in (OUT / "harvest" / "samples.jsonl").read_text().splitlines()]
    assert len(kept) > 1000
    assert all(row["scores"]["exact"] == row["scores"]["language"] == row["scores"]["readable"] == 1 for row in kept)
    assert all(row["parents"]["model"] == manifest.read(OUT / "reason")["weights"]["end"] for row in kept)


def test_the_student_is_half_the_size_and_nearly_as_good(mini):
    from safetensors import safe_open

    def size(model: Path) -> int:
        with safe_open(model / "model.safetensors", framework="np") as f:
            return sum(f.get_tensor(name).size for name in f.keys())  # noqa: SIM118  not a dictionary

    assert size(OUT / "student" / "weights" / "last") < 0.52 * size(OUT / "align" / "weights" / "last")
    assert score("finals") >= 0.9 * score("exam")


def test_a_student_that_is_taught_beats_one_that_is_left_to_itself(control):
    alone = read(control / "alone" / "evaluations" / "after.json")["accuracy"]["mean"]
    spent = sum(row["time/step"] for row in rows("alone", control))
    assert spent >= sum(row["time/step"] for row in rows("student"))
    assert score("finals") > alone


def test_on_policy_distillation_brings_the_student_to_its_teacher(control):
    """`reference_kl` is the mean of log(student / teacher) over the tokens that the student sampled: per-token reverse KL."""
    kl = [row["reference_kl"] for row in rows("follow", control)]
    assert kl[0] > 0.05
    assert sum(kl[-5:]) / 5 < 0.2 * kl[0]


def test_the_release_loads_anywhere(mini):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = OUT / "release" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("47+85=", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :])
    assert text.startswith("<think>")
    assert "reason" in (folder / "README.md").read_text()
