"""Where a recipe's processes go, decided from numbers alone."""

import pytest

from rlreason.config import Config, LearnerConfig, LoopConfig, RolloutConfig
from rlreason.errors import ResourceError
from rlreason.placement import Placement, clash, place


def config(learners=1, rollouts=1, max_lag=0, device="auto", transport="auto", **vllm) -> Config:
    return Config(
        model="m", out="o", device=device, transport=transport, learner=LearnerConfig(workers=learners),
        rollout=RolloutConfig(workers=rollouts, vllm=vllm), loop=LoopConfig(max_lag=max_lag),
    )  # fmt: skip


def placed(c: Config, cpus=2.0, gpus=0.0, nodes=1) -> Placement:
    return place(c, [{"CPU": cpus / nodes, "GPU": gpus / nodes}] * nodes, c.learner.workers, c.rollout.workers)


@pytest.mark.parametrize(
    ("c", "machine", "expected"),
    [
        (config(), {}, Placement("cpu", False, "shm", 1.0, 1)),
        (config(2, 2), {}, Placement("cpu", False, "shm", 0.5, 1)),
        (config(), {"cpus": 16.0}, Placement("cpu", False, "shm", 1.0, 8)),
        (config(), {"nodes": 2}, Placement("cpu", False, "file", 1.0, 1)),
        (config(), {"gpus": 1.0}, Placement("cuda", True, "ipc", 1.0, 1)),
        (config(), {"gpus": 2.0}, Placement("cuda", False, "nccl", 1.0, 1)),
        (config(), {"gpus": 2.0, "nodes": 2}, Placement("cuda", False, "nccl", 1.0, 1)),
        (config(4, 2, tensor_parallel_size=2), {"gpus": 8.0, "cpus": 64.0}, Placement("cuda", False, "nccl", 1.0, 10)),
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
        (config(transport="nccl"), {}, "nccl needs GPUs"),
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


def test_builds_that_clash_are_told_with_the_command_that_mends_it():
    mixed = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.11.0+cpu"}
    assert clash(mixed).endswith("pip uninstall -y torchvision")
    assert clash({"torch": "2.13.0+cpu"}) == ""
    assert clash({"torch": "2.13.0", "torchvision": "0.28.0"}) == "", "on a GPU they belong together"
