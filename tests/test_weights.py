"""Weights through memory and through a file: what arrives is what was sent."""

import os
import subprocess
import sys
from collections import deque

import pytest
import torch

from rlreason import weights
from rlreason.weights import Publisher, buckets, joined, parted, read


def tensors(seed: int) -> list[tuple[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        ("embed", torch.randn(7, 3, generator=g)),
        ("norm", torch.randn(3, generator=g).bfloat16()),
        ("head", torch.randn(3, 8, generator=g).T),  # not contiguous
        ("scalar", torch.randn((), generator=g)),
    ]


@pytest.mark.parametrize("kind", ["shm", "file"])
def test_what_arrives_is_what_was_sent_the_second_time_too(kind, tmp_path):
    publisher = Publisher(kind, tmp_path)
    for seed in (0, 1):
        handle = publisher.publish(tensors(seed))
        arrived = {name: t.clone() for name, t in read(handle)}
        assert arrived.keys() == {"embed", "norm", "head", "scalar"}
        for name, sent in tensors(seed):
            assert arrived[name].dtype == sent.dtype
            assert torch.equal(arrived[name], sent)


@pytest.mark.parametrize(("most", "messages"), [(1, 4), (100, 3), (1 << 20, 1)])
def test_a_broadcast_carries_many_tensors(monkeypatch, most, messages):
    """What the learner's end joins is what the engine's end takes apart, whatever comes between the two."""
    monkeypatch.setattr(weights, "BUCKET", most)
    sent = tensors(0)
    wire = deque(joined([t for _, t in sent[part]]) for part in buckets([t.nbytes for _, t in sent]))
    assert len(wire) == messages
    handle = {"names": [name for name, _ in sent], "shapes": [list(t.shape) for _, t in sent],
              "dtypes": [str(t.dtype).removeprefix("torch.") for _, t in sent]}  # fmt: skip

    def receive(size):
        assert len(wire[0]) == size
        return wire.popleft()

    arrived = [one for bucket in parted(handle, receive) for one in bucket]
    assert [name for name, _ in arrived] == handle["names"]
    for (_, here), (_, there) in zip(arrived, sent, strict=True):
        assert here.dtype == there.dtype
        assert torch.equal(here, there)


def test_shared_memory_has_no_name_to_leave_behind():
    before = set(os.listdir("/dev/shm"))
    publisher = Publisher("shm")
    publisher.publish(tensors(0))
    assert set(os.listdir("/dev/shm")) - before == set()


def test_a_directory_without_weights_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no"):
        list(read({"kind": "file", "path": str(tmp_path)}))


FULL = """
import resource, sys, torch
from pathlib import Path
from rlreason.errors import StorageError
from rlreason.weights import Publisher

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    Publisher(sys.argv[1], Path(sys.argv[2])).publish([("a", torch.zeros(1000))])
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["file", "delta"])
def test_a_disk_that_takes_no_weights_is_told_as_one(tmp_path, kind):
    run = subprocess.run([sys.executable, "-c", FULL, kind, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "the file is larger than the file system, or ulimit -f, allows" in run.stdout
    assert str(tmp_path) in run.stdout
