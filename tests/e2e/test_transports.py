"""Whole runs by every way in which weights travel and devices are shared: they learn what a plain run learns."""

import json

import pytest
from real import Run, rlreason

pytestmark = pytest.mark.e2e
DEBUG = "recipes/debug.yaml"
STEPS = 4


@pytest.fixture(scope="module")
def train(models, digits, tmp_path_factory):
    def run(name: str, *options: str) -> Run:
        out = tmp_path_factory.mktemp(name) / "run"
        options = (f"loop.steps={STEPS}", "eval.tasks=4", *options)
        return rlreason(
            "train", DEBUG, f"model={models('qwen2-tied')}", f"tasks.path={digits}", f"out={out}", *options, out=out
        )

    return run


def plain(run: Run) -> list[dict]:
    assert run.code == 0, run.text
    assert len(run.rows) == STEPS
    assert max(row["policy_gap"] for row in run.rows) < 1e-5
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.rows]


@pytest.fixture(scope="module")
def shm(train) -> list[dict]:
    return plain(train("shm", "transport=shm", "rollout.workers=2"))


def test_a_broadcast_over_gloo_trains_the_same_to_the_bit(train, shm):
    assert plain(train("broadcast", "transport=broadcast", "rollout.workers=2")) == shm


def test_learners_and_engines_that_take_turns_train_the_same_to_the_bit(train, shm):
    """The debug mode for a single GPU: the same calls, of which vLLM's sleep and wake do nothing on a CPU."""
    assert plain(train("turns", "share=true", "rollout.workers=2")) == shm


def test_zero_3_gathers_for_a_tensor_parallel_engine(train, shm):
    """Two ranks, one engine of two workers, a broadcast: other sums, and so other last bits."""
    rows = plain(train("wide", "transport=broadcast", "rollout.vllm.tensor_parallel_size=2", "learner.workers=2",
                       "learner.deepspeed.zero_optimization.stage=3"))  # fmt: skip
    for row, other in zip(rows, shm, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_fine_tuning_broadcasts_when_an_engine_loads_and_never_else(train):
    """An evaluation before, one on the way, one after; nobody takes part in between."""
    run = train("sft", "transport=broadcast", "algorithm.answers=recorded", "algorithm.loss=nll", "loop.samples=1",
                "eval.every=2", "loop.save_every=2")  # fmt: skip
    assert run.code == 0, run.text
    assert sorted(file.stem for file in (run.out / "evaluations").iterdir()) == ["after", "before", "step-000002"]
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4]


@pytest.mark.long
def test_the_default_recipe_learns_in_bfloat16(train):
    """At ZeRO 0, as base.yaml has it, and as the same recipe on a GPU."""
    run = train("bfloat16", "learner.dtype=bfloat16", "loop.save_every=2")
    assert run.code == 0, run.text
    assert 1e-7 < max(row["policy_gap"] for row in run.rows) < 0.02, "rounding, and no more than that"
    about = json.loads((run.out / "weights" / "last" / "config.json").read_text())
    assert about["dtype"] == "bfloat16"
