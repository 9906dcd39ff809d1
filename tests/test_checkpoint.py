"""A checkpoint exists when its manifest does."""

import pytest

from rlreason.checkpoint import MANIFEST, commit, newest, point, prune, prune_weights
from rlreason.errors import StorageError


def made(parent, version, committed=True):
    folder = parent / f"v{version}"
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / "shard").write_bytes(bytes(range(version)))
    if committed:
        commit(folder, {"version": version, "cursor": 10 * version})
    return folder


def test_the_newest_committed_one_is_found_by_number_not_by_name(tmp_path):
    for version in (2, 9, 10):
        made(tmp_path, version)
    made(tmp_path, 11, committed=False)
    assert newest(tmp_path) == (tmp_path / "v10", {"version": 10, "cursor": 100})


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path / "nowhere") is None
    made(tmp_path, 3, committed=False)
    assert newest(tmp_path) is None


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x"), lambda p: p.write_bytes(bytes(4)[:4] + b"!")]
)
def test_damage_is_told(tmp_path, damage):
    folder = made(tmp_path, 5)
    damage(folder / "deepspeed" / "shard")
    with pytest.raises(StorageError, match="missing or damaged"):
        newest(tmp_path)


def test_pruning_keeps_the_newest_and_removes_what_never_was(tmp_path):
    for version in (1, 2, 3):
        made(tmp_path, version)
    made(tmp_path, 4, committed=False)
    prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v2", "v3"]


def test_published_weights_go_with_their_checkpoint(tmp_path):
    for version in (1, 2, 3):
        made(tmp_path / "checkpoints", version)
        (tmp_path / "weights" / f"v{version}").mkdir(parents=True)
    point(tmp_path / "weights" / "last", "v2")
    point(tmp_path / "weights" / "last", "v3")
    prune(tmp_path / "checkpoints")
    prune_weights(tmp_path / "weights", tmp_path / "checkpoints")
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["last", "v2", "v3"]
    assert (tmp_path / "weights" / "last").resolve().name == "v3"


def test_a_manifest_covers_every_file_but_itself(tmp_path):
    folder = made(tmp_path, 3)
    commit(folder, {"version": 3, "cursor": 30})
    assert newest(tmp_path)[1]["cursor"] == 30
    assert '"deepspeed/shard"' in (folder / MANIFEST).read_text()
    assert f'"{MANIFEST}"' not in (folder / MANIFEST).read_text()
