"""The same program on a GPU: `pytest -m gpu`. What needs two of them says so."""

import pytest
from real import Run, rlreason

pytestmark = pytest.mark.gpu
DEBUG = "recipes/debug.yaml"


@pytest.fixture(scope="module")
def gpus() -> int:
    import torch

    count = torch.cuda.device_count()
    if not count:
        pytest.fail("-m gpu was asked for, and there is none")
    return count


def train(models, digits, out, *more: str) -> Run:
    run = rlreason(
        "train", DEBUG, f"model={models('qwen2-tied')}", f"tasks.path={digits}", f"out={out}", *more, out=out, timeout=600
    )
    assert run.code == 0, run.text
    assert len(run.rows) == 10
    assert max(row["policy_gap"] for row in run.rows) < 0.05, "bfloat16 in two implementations: small, not zero"
    return run


@pytest.mark.parametrize("transport", ["auto", "file", "delta"])
@pytest.mark.usefixtures("gpus")
def test_learner_and_engine_take_turns_on_one_gpu(models, digits, tmp_path, transport, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    train(models, digits, tmp_path / "run", f"transport={transport}")


def test_two_gpus_pass_weights_by_nccl(models, digits, tmp_path, gpus):
    if gpus < 2:
        pytest.skip("needs two GPUs")
    train(models, digits, tmp_path / "run", "loop.max_lag=1")


@pytest.mark.usefixtures("gpus")
def test_zero_3_in_bfloat16(models, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    train(models, digits, tmp_path / "run", "learner.deepspeed.zero_optimization.stage=3")


@pytest.mark.usefixtures("gpus")
def test_a_reference_and_a_proximal_policy_on_the_gpu(models, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    more = ("algorithm.preset=r1", "algorithm.reference_every=2", "learner.updates=2")
    run = train(models, digits, tmp_path / "run", *more)
    assert max(abs(row["reference_kl"]) for row in run.rows) < 0.1
