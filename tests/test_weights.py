"""Weights through memory and through a file: what arrives is what was sent."""

import os
import subprocess
import sys
from collections import deque

import pytest
import torch

from rlreason.weights import Publisher, Source, parted, tensors
from rlreason.weights.delta import Held
from rlreason.weights.reader import read


def weights(seed: int) -> list[tuple[str, torch.Tensor]]:
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
        handle = publisher.publish(weights(seed))
        arrived = {name: t.clone() for name, t in read(handle)}
        assert arrived.keys() == {"embed", "norm", "head", "scalar"}
        for name, sent in weights(seed):
            assert arrived[name].dtype == sent.dtype
            assert torch.equal(arrived[name], sent)


@pytest.mark.parametrize(("most", "messages"), [(1, 4), (100, 3), (1 << 20, 1)])
@pytest.mark.parametrize("transient", [False, True])
def test_a_broadcast_carries_many_tensors(monkeypatch, most, messages, transient):
    """What the learner's end joins is what the engine's end takes apart, whatever comes between the two."""
    monkeypatch.setattr(tensors, "BUCKET", most)
    sent = weights(0)

    def gather():
        for name, t in sent:
            now = t.clone()
            yield name, now
            if transient:
                now.fill_(float("nan"))  # it was valid until the next was requested

    source = Source([tensors.Spec(name, t.dtype, tuple(t.shape)) for name, t in sent], gather, transient)
    wire = deque(tensors.messages(source))
    assert len(wire) == messages

    def receive(size):
        assert len(wire[0]) == size
        return wire.popleft()

    arrived = [one for bucket in parted(source.describe(), receive) for one in bucket]
    assert [name for name, _ in arrived] == [name for name, _ in sent]
    for (_, here), (_, there) in zip(arrived, sent, strict=True):
        assert here.dtype == there.dtype
        assert torch.equal(here, there)


@pytest.mark.parametrize("kind", ["shm", "file", "delta"])
def test_tensors_that_are_gathered_one_after_the_other_arrive_as_well(kind, tmp_path):
    sent = weights(0)

    def gather():
        for name, t in sent:
            now = t.clone()
            yield name, now
            now.fill_(float("nan"))

    source = Source([tensors.Spec(name, t.dtype, tuple(t.shape)) for name, t in sent], gather, True)
    handle = Publisher(kind, tmp_path).publish(source)
    arrived = Held().read(handle) if kind == "delta" else read(handle)
    arrived = {name: t.clone() for name, t in arrived}
    assert all(torch.equal(arrived[name], t) for name, t in sent)


def test_shared_memory_has_no_name_to_leave_behind():
    before = set(os.listdir("/dev/shm"))
    publisher = Publisher("shm")
    publisher.publish(weights(0))
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


def test_device_memory_is_exported_once(monkeypatch):
    """What an export is made of needs a GPU; how often it is made does not. A gathered tensor gets a buffer that stays."""
    from torch.multiprocessing import reductions

    exports = []
    monkeypatch.setattr(reductions, "reduce_tensor", lambda t: (None, exports.append(t.data_ptr()) or ("handle", t.data_ptr())))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for transient in (False, True):
        publisher, sent = Publisher("ipc"), [(name, t.contiguous()) for name, t in weights(0)]
        specs = [tensors.Spec(name, t.dtype, tuple(t.shape)) for name, t in sent]
        source = Source(specs, lambda sent=sent: iter(sent), transient)
        exports.clear()
        first = publisher.publish(source)["ipc_handles"]
        for (_, t), (_, other) in zip(sent, weights(1), strict=True):
            t.copy_(other)  # an optimizer step, in place
        assert publisher.publish(source)["ipc_handles"] == first
        assert len(exports) == len(sent)
        held = {name: t for name, (t, _) in publisher.exported.items()}
        assert all(torch.equal(held[name], t) for name, t in weights(1))
        assert (held["embed"].data_ptr() == sent[0][1].data_ptr()) != transient
