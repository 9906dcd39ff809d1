"""Where a recipe's processes go, decided from numbers alone."""

import pytest

from rlreason.config import Config, LearnerConfig, LoopConfig, RolloutConfig
from rlreason.errors import ResourceError
from rlreason.placement import Placement, clash, place


def config(learners=1, rollouts=1, max_lag=0, device="auto", transport="auto", share=None, **vllm) -> Config:
    return Config(
        model="m", out="o", device=device, transport=transport, share=share, learner=LearnerConfig(workers=learners),
        rollout=RolloutConfig(workers=rollouts, vllm=vllm), loop=LoopConfig(max_lag=max_lag),
    )  # fmt: skip


def placed(c: Config, cpus=2.0, gpus=0.0, nodes=None) -> Placement:
    """`nodes`: the GPUs of each; None: one node has them all."""
    of = [gpus] if nodes is None else nodes
    there = [{"CPU": cpus / len(of), "GPU": float(n)} for n in of]
    return place(c, there, c.learner.workers, c.rollout.workers)


@pytest.mark.parametrize(
    ("c", "machine", "expected"),
    [
        (config(), {}, Placement("cpu", False, "shm", 1.0, 1)),
        (config(2, 2), {}, Placement("cpu", False, "shm", 0.5, 1)),
        (config(), {"cpus": 16.0}, Placement("cpu", False, "shm", 1.0, 8)),
        (config(), {"nodes": [0, 0]}, Placement("cpu", False, "broadcast", 1.0, 1)),
        (config(), {"gpus": 1.0}, Placement("cuda", True, "ipc", 1.0, 1)),
        (config(), {"gpus": 2.0}, Placement("cuda", False, "broadcast", 1.0, 1)),
        (config(), {"gpus": 2.0, "nodes": [1, 1]}, Placement("cuda", False, "broadcast", 1.0, 1)),
        (config(transport="nccl"), {"gpus": 2.0}, Placement("cuda", False, "broadcast", 1.0, 1)),
        (config(transport="broadcast"), {}, Placement("cpu", False, "broadcast", 1.0, 1)),
        (config(share=True), {}, Placement("cpu", True, "shm", 1.0, 1)),
        (config(2, 2, share=True, transport="broadcast"), {}, Placement("cpu", True, "broadcast", 0.5, 1)),
        (config(share=True), {"gpus": 2.0}, Placement("cuda", True, "ipc", 1.0, 1)),
        (config(share=True, transport="file"), {"gpus": 1.0}, Placement("cuda", True, "file", 1.0, 1)),
        (config(1, 1, tensor_parallel_size=2), {}, Placement("cpu", False, "shm", 2 / 3, 1)),
        (config(1, 1, tensor_parallel_size=2), {"gpus": 3.0, "nodes": [2, 1]}, Placement("cuda", False, "broadcast", 0.5, 1)),
        (config(4, 2, tensor_parallel_size=2), {"gpus": 8.0, "cpus": 64.0}, Placement("cuda", False, "broadcast", 1.0, 8)),
        (config(device="cpu"), {"gpus": 8.0}, Placement("cpu", False, "shm", 1.0, 1)),
        (config(transport="file"), {"gpus": 2.0}, Placement("cuda", False, "file", 1.0, 1)),
    ],
)
def test_placement(c, machine, expected):
    assert placed(c, **machine) == expected


@pytest.mark.parametrize(
    ("c", "machine", "told"),
    [
        (config(device="cuda"), {}, "there are 0"),
        (config(2, 1), {"gpus": 2.0}, "2 learners and 1 engines of 1 GPUs each, 3 GPUs; there are 2"),
        (config(max_lag=1), {"gpus": 1.0}, "if loop.max_lag is 0"),
        (config(transport="ipc"), {"gpus": 2.0}, "ipc needs a learner and an engine on one GPU"),
        (config(transport="broadcast"), {"gpus": 1.0}, "NCCL needs GPUs of their own"),
        (config(transport="shm"), {"nodes": [0, 0]}, "shm is memory of one host, and there are 2 nodes"),
        (config(max_lag=1, share=True), {}, "loop.max_lag has to be 0, and is 1"),
        (config(share=False), {"gpus": 1.0}, "1 learners and 1 engines of 1 GPUs each, 2 GPUs; there are 1"),
        (config(2, 2, share=True), {"gpus": 2.0}, "one learner and one engine of one GPU can share a GPU"),
        (
            config(1, 1, tensor_parallel_size=2),
            {"gpus": 3.0, "nodes": [1, 1, 1]},
            r"needs them on one node; the nodes have 1, 1, 1, enough for 0 engines of 1",
        ),
        (
            config(1, 1, pipeline_parallel_size=2, tensor_parallel_size=2),
            {"gpus": 4.0},
            "1 learners and 1 engines of 4 GPUs each, 5 GPUs; there are 4",
        ),
    ],
)
def test_what_cannot_be_placed_is_refused_with_numbers(c, machine, told):
    with pytest.raises(ResourceError, match=told):
        placed(c, **machine)


@pytest.mark.parametrize(
    ("cpus", "processes", "share"),
    [((2,), 3, 2 / 3), ((1, 1), 3, 0.5), ((1, 1), 2, 1.0), ((1, 2), 4, 2 / 3), ((0, 2), 2, 1.0), ((8, 8), 16, 1.0),
     ((), 2, 0.5), ((0.5,), 2, 0.25)],
)  # fmt: skip
def test_every_process_fits_on_a_node(cpus, processes, share):
    there = place(config(1, processes - 1), [{"CPU": cpu} for cpu in cpus] or [{}], 1, processes - 1)
    assert there.cpus == pytest.approx(share)


def test_the_workers_of_a_wide_engine_fit_on_one_node():
    assert placed(config(1, 1, tensor_parallel_size=2), cpus=2.0, nodes=[0, 0]).cpus == pytest.approx(0.5)


def test_builds_that_clash_are_told_with_the_command_that_mends_it():
    mixed = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.11.0+cpu"}
    assert clash(mixed).endswith("pip uninstall -y torchvision")
    assert clash({"torch": "2.13.0+cpu"}) == ""
    assert clash({"torch": "2.13.0", "torchvision": "0.28.0"}) == "", "on a GPU they belong together"


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments_are_refused_where_a_gpu_is_shared(monkeypatch, name):
    monkeypatch.setenv(name, "garbage_collection_threshold:0.8,expandable_segments:True")
    with pytest.raises(ResourceError, match=f"{name}=.*CUDA IPC"):
        placed(config(), gpus=1.0)
    assert placed(config(), gpus=2.0).transport == "broadcast"
