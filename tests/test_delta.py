"""What has changed of weights, through files: every engine ends up with every bit, whatever it missed."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rlreason.errors import WeightsUnavailable, Wounded
from rlreason.weights import Publisher, delta
from rlreason.weights.delta import Changes, Held, checksum, file

SIZE = 20_000


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(100, SIZE // 100, generator=g).bfloat16(),
        "norm": torch.randn(3, generator=g),
        "head": torch.randn(8, 30, generator=g).T.half(),  # not contiguous
        "scalar": torch.randn((), generator=g),
        "count": torch.arange(5),
    }


def learn(tensors: dict[str, torch.Tensor], share: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for t in tensors.values():
        t[torch.rand(t.shape, generator=g) < share] += 1


def same(here: dict[str, torch.Tensor], there: dict[str, torch.Tensor]) -> bool:
    return here.keys() == there.keys() and all(torch.equal(here[name], t) for name, t in there.items())


def test_two_in_a_hundred_cost_less_than_a_fifth_and_arrive_to_the_bit(tmp_path):
    learner, engine, now = Changes(tmp_path), Held(), weights()
    whole = learner.publish(now)
    assert same(dict(engine.read(whole)), now)
    first = file(tmp_path, whole["life"], 1).read_bytes()
    for step in range(5):
        learn(now, 0.02, step)
        handle = learner.publish(now)
        assert 0 < handle["bytes"] < 0.2 * whole["bytes"]
        assert file(tmp_path, handle["life"], handle["number"]).stat().st_size < 0.2 * len(first)
        assert same(dict(engine.read(handle)), now)
    assert file(tmp_path, whole["life"], 1).read_bytes() == first
    with file(tmp_path, whole["life"], 1).open("r+b") as written:
        written.write(bytes(len(first)))
    learn(now, 0.02, 5)
    assert same(dict(engine.read(learner.publish(now))), now), "what an engine holds is its own, and no file"


def test_not_a_number_and_the_sign_of_zero_are_changes_too(tmp_path):
    learner, engine, now = Changes(tmp_path), Held(), {"a": torch.zeros(4), "b": torch.full((2,), float("nan"))}
    dict(engine.read(learner.publish(now)))
    now["a"][1], now["a"][2] = -0.0, float("nan")
    handle = learner.publish(now)
    assert handle["bytes"] == 2 * (4 + 4), "an unchanged NaN is none"
    arrived = dict(engine.read(handle))
    assert torch.equal(arrived["a"].view(torch.int32), now["a"].view(torch.int32))


def test_nothing_changed_is_nothing_to_send(tmp_path):
    learner, engine, now = Changes(tmp_path), Held(), weights()
    dict(engine.read(learner.publish(now)))
    handle = learner.publish(now)
    assert handle["bytes"] == 0
    assert same(dict(engine.read(handle)), now)


@given(seed=st.integers(0, 1 << 20))
def test_whoever_missed_some_or_all_has_every_bit_in_the_end(seed, tmp_path_factory):
    """Three engines that read now and then, and a learner that is started anew now and then."""
    chance, folder = random.Random(seed), tmp_path_factory.mktemp("live")
    learner, engines, now = Changes(folder), [Held() for _ in range(3)], weights(seed)
    for step in range(8):
        if chance.random() < 0.1:
            learner = Changes(folder)
        learn(now, chance.choice([0, 0.01, 0.1, 1]), step)
        handle = learner.publish(now)
        for engine in engines:
            if chance.random() < 0.5:
                assert same(dict(engine.read(handle)), now)
    assert sum(one.stat().st_size for one in folder.iterdir()) < 2.2 * handle["bytes"] + 2.2 * 2 * SIZE + 4000


def test_the_folder_holds_no_more_than_two_models(tmp_path):
    learner, now = Changes(tmp_path), weights()
    size, kinds = learner.publish(now)["bytes"], Counter()
    for step in range(40):
        learn(now, 0.05, step)
        handle = learner.publish(now)
        kinds["whole" if handle["number"] == handle["whole"] else "changes"] += 1
        files = [*tmp_path.iterdir()]
        assert len(files) == handle["number"] - handle["whole"] + 1
        assert sum(one.stat().st_size for one in files) < 2 * size + 1000 * len(files)
    assert kinds["whole"] > 3
    assert kinds["changes"] > 4 * kinds["whole"]


def test_what_is_replaced_is_gone_and_the_newest_is_read_from_the_beginning(tmp_path):
    learner, engine, now = Changes(tmp_path), Held(), weights()
    old = learner.publish(now)
    learn(now, 1, 0)
    newest = learner.publish(now)
    assert newest["whole"] == newest["number"]
    with pytest.raises(WeightsUnavailable, match="publication 1"):
        dict(engine.read(old))
    assert same(dict(engine.read(newest)), now)


@pytest.mark.parametrize("lost", [1, 2])
def test_what_is_lost_and_not_replaced_is_told(tmp_path, lost):
    """An engine that waited for the next would wait for ever: without engines there is none."""
    learner, now = Changes(tmp_path), weights()
    learner.publish(now)
    learn(now, 0.02, 0)
    handle = learner.publish(now)
    file(tmp_path, handle["life"], lost).unlink()
    with pytest.raises(Wounded, match=f"-{lost}.safetensors is lost, and no newer one has taken its place"):
        dict(Held().read(handle))
    Changes(tmp_path).publish(now)  # a learner that was started anew
    with pytest.raises(WeightsUnavailable):
        dict(Held().read(handle))


@pytest.mark.parametrize("damage", ["cut", "value", "place", "other", "folder"])
def test_damage_is_told_and_nothing_of_it_is_kept(tmp_path, damage):
    learner, engine, now = Changes(tmp_path), Held(), weights()
    dict(engine.read(learner.publish(now)))
    learn(now, 0.02, 0)
    handle = learner.publish(now)
    path = file(tmp_path, handle["life"], 2)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "value":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "place":
        read = load_file(path)
        read["at:embed"][0] = SIZE
        save_file(read, path)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:  # as a cache that gives what was there before
        path.write_bytes(file(tmp_path, handle["life"], 1).read_bytes())
    with pytest.raises(Wounded, match="2"):
        dict(engine.read(handle))
    if damage == "folder":
        path.rmdir()
    path.write_bytes(whole)
    assert same(dict(engine.read(handle)), now), "from the whole one again"


def test_what_has_another_shape_or_lost_its_beginning_is_sent_whole(tmp_path):
    learner, engine, now = Changes(tmp_path), Held(), weights() | {"none": torch.zeros(0)}
    assert same(dict(engine.read(learner.publish(now))), now)
    now["norm"], now["new"] = torch.ones(2, 2), torch.ones(3)
    handle = learner.publish(now)
    assert handle["whole"] == handle["number"] == 2
    assert same(dict(engine.read(handle)), now)
    file(tmp_path, handle["life"], 2).unlink()
    handle = learner.publish(now)
    assert handle["whole"] == 3
    assert same(dict(Held().read(handle)), now)


def test_a_checksum_knows_which_tensor_is_which():
    a, b = torch.zeros(3), torch.ones(3)
    assert checksum({"a": a, "b": b}) == checksum({"b": b, "a": a})
    assert checksum({"a": a, "b": b}) != checksum({"a": b, "b": a})
    assert checksum({"a": torch.zeros(2, 3)}) != checksum({"a": torch.zeros(3, 2)})
    assert checksum({"a": torch.zeros(2)}) != checksum({"a": torch.zeros(2, dtype=torch.int32)})


def test_what_could_not_be_written_was_never_published(tmp_path, monkeypatch):
    learner, engine, now = Changes(tmp_path), Held(), weights()
    dict(engine.read(learner.publish(now)))
    learn(now, 0.02, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(delta, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            learner.publish(now)
    learn(now, 0.02, 1)
    handle = learner.publish(now)
    assert handle["number"] == 2
    assert same(dict(engine.read(handle)), now)
    assert same(dict(Held().read(handle)), now)


def test_a_publisher_of_this_kind_says_what_it_is(tmp_path):
    handle = Publisher("delta", tmp_path).publish(weights().items())
    assert handle["kind"] == "delta"
    assert handle["names"] == [*weights()]
    assert same(dict(Held().read(handle)), weights())
