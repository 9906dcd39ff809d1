"""A checkpoint exists when its manifest does, and counts while its files are what the manifest says."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from safetensors import SafetensorError

from rlreason import checkpoint, storage
from rlreason.checkpoint import MANIFEST, Found, begin, commit, newest, point, prune, prune_weights
from rlreason.errors import StorageError

CHAOS = Path(__file__).parent / "chaos"


def made(parent, version, whole=True):
    folder = parent / f"v{version}"
    begin(folder)
    (folder / "deepspeed").mkdir()
    (folder / "deepspeed" / "shard").write_bytes(bytes(range(version)))
    if whole:
        commit(folder, {"version": version, "cursor": 10 * version})
    return folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_newest_committed_one_is_found_by_number_not_by_name(tmp_path):
    for version in (2, 9, 10):
        made(tmp_path, version)
    made(tmp_path, 11, whole=False)
    assert newest(tmp_path) == Found(tmp_path / "v10", {"version": 10, "cursor": 100}, [])


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path / "nowhere") is None
    made(tmp_path, 3, whole=False)
    (tmp_path / "v4").write_text("no folder")
    (tmp_path / "vision").mkdir()
    assert newest(tmp_path) is None


DAMAGE = {
    "is missing": lambda folder: (folder / "deepspeed" / "shard").unlink(),
    "has 1 bytes, and had 5": lambda folder: (folder / "deepspeed" / "shard").write_bytes(b"x"),
    "has another checksum": lambda folder: (folder / "deepspeed" / "shard").write_bytes(bytes(4) + b"!"),
    "MANIFEST.json is damaged": lambda folder: (folder / MANIFEST).write_text('{"state": {"vers'),
    "MANIFEST.json is damaged: KeyError": lambda folder: (folder / MANIFEST).write_text('{"state": {}}'),
    "MANIFEST.json is damaged: TypeError": lambda folder: (folder / MANIFEST).write_text("[]"),
    "MANIFEST.json is damaged: JSONDecodeError": lambda folder: (folder / MANIFEST).write_bytes(b""),
}


@pytest.mark.parametrize("wrong", DAMAGE)
def test_a_damaged_one_is_told_and_moved_aside_for_the_one_before_it(tmp_path, wrong):
    made(tmp_path, 4)
    DAMAGE[wrong](made(tmp_path, 5))
    found = newest(tmp_path)
    assert (found.folder.name, found.state["version"]) == ("v4", 4)
    assert wrong in found.damaged[0]
    assert names(tmp_path) == ["damaged-v5", "v4"]
    DAMAGE[wrong](made(tmp_path, 5))
    newest(tmp_path)
    assert names(tmp_path) == ["damaged-v5", "damaged-v5.1", "v4"], "and nothing takes its place"
    made(tmp_path, 6)
    prune(tmp_path, 1)
    assert names(tmp_path) == ["damaged-v5", "damaged-v5.1", "v6"], "nor is it ever removed"


def test_where_none_holds_the_run_ends_rather_than_begin_anew(tmp_path):
    for version in (4, 5):
        DAMAGE["is missing"](made(tmp_path, version))
    for _ in range(2):
        with pytest.raises(StorageError, match=r"v5/deepspeed/shard is missing\n.*v4/deepspeed/shard is missing\n.*--fresh"):
            newest(tmp_path)
        assert names(tmp_path) == ["v4", "v5"], "all is where it was"


def test_nor_does_it_where_they_were_moved_or_taken_away(tmp_path):
    made(tmp_path / "checkpoints", 3).rename(tmp_path / "checkpoints" / "damaged-v3")
    with pytest.raises(StorageError, match="damaged-v3 is damaged"):
        newest(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "weights").mkdir()
    point(tmp_path / "weights" / "last", "v3")
    with pytest.raises(StorageError, match="leads to v3, which had a checkpoint"):
        newest(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("files", "ranks", "stage", "reads"),
    [  # written by 2 ranks under ZeRO 0 (whole) or 2 (a part each)
        ("mp_rank_00_model_states.pt", 2, 0, True), ("mp_rank_00_model_states.pt", 4, 0, True),
        ("mp_rank_00_model_states.pt", 2, 2, False), ("zero_pp_rank_1_mp_rank_00_optim_states.pt", 2, 2, True),
        ("zero_pp_rank_1_mp_rank_00_optim_states.pt", 1, 2, False), ("zero_pp_rank_1_mp_rank_00_optim_states.pt", 2, 3, False),
        ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", 4, 0, False),
    ],
)  # fmt: skip
def test_other_learners_read_a_checkpoint_or_are_refused_in_one_line(tmp_path, files, ranks, stage, reads):
    was = 2 if files.startswith("zero") else 0
    folder = tmp_path / "checkpoints" / "v3"
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / files).touch()
    commit(folder, {"version": 3, "ranks": 2, "stage": was})
    told = checkpoint.unfit(tmp_path / "checkpoints", ranks, stage)
    assert bool(told) is not reads
    assert "\n" not in told
    if told:
        assert f"2 learners under ZeRO {was}, and {ranks} under ZeRO {stage}" in told
        assert told.endswith(f"model={tmp_path}/weights/v3")


def test_what_a_crash_left_is_no_part_of_the_next_try(tmp_path):
    """A try with more ranks leaves shards that nobody would overwrite."""
    folder = made(tmp_path, 3, whole=False)
    (folder / "deepspeed" / "shard of rank 7").write_text("")
    made(tmp_path, 3)
    assert names(folder / "deepspeed") == ["shard"]
    with pytest.raises(RuntimeError, match="is committed"):
        begin(folder)


def test_pruning_keeps_the_newest_and_removes_what_never_was(tmp_path):
    for version in (1, 2, 3):
        made(tmp_path, version)
    made(tmp_path, 4, whole=False)
    assert prune(tmp_path) == []
    assert names(tmp_path) == ["v2", "v3"]
    prune(tmp_path, 1)
    assert names(tmp_path) == ["v3"]


def test_published_weights_go_with_their_checkpoint(tmp_path):
    weights, checkpoints = tmp_path / "weights", tmp_path / "checkpoints"
    for version in (1, 2, 3, 4):
        made(checkpoints, version)
        (weights / f"v{version}").mkdir(parents=True)
    (weights / "v9.partial").mkdir()
    point(weights / "last", "v3")
    point(weights / "last", "v4")
    point(weights / "best", "v1")
    prune(checkpoints)
    assert prune_weights(weights, checkpoints) == []
    assert names(weights) == ["best", "last", "v1", "v3", "v4"]
    assert (weights / "last").resolve().name == "v4"


def test_what_a_crash_left_is_cleared_up_and_pointers_that_lead_nowhere_or_are_none_are_mended(tmp_path):
    weights, checkpoints = tmp_path / "weights", tmp_path / "checkpoints"
    for version in (2, 3):
        made(checkpoints, version)
        (weights / f"v{version}").mkdir(parents=True)
    made(checkpoints, 4, whole=False)
    (weights / "v4").mkdir()
    assert checkpoint.tidy(tmp_path, 3, 1) == [f"{weights}/last was not there, and leads to v3 now"]
    assert (names(checkpoints), names(weights)) == (["v3"], ["last", "v3"])
    assert checkpoint.tidy(tmp_path, 3, 1) == []
    point(weights / "last", "v7")
    point(weights / "best", "v7")
    mended = [text.split("/")[-1] for text in checkpoint.tidy(tmp_path, 3, 1)]
    assert mended == ["last was v7, and leads to v3 now", "best led to v7, which is gone"]
    for garbage in (lambda p: p.write_bytes(b"\xff\x00"), lambda p: p.mkdir()):
        (weights / "last").unlink()
        garbage(weights / "last")
        checkpoint.tidy(tmp_path, 3, 1)
        assert os.readlink(weights / "last") == "v3"
    assert names(weights) == ["damaged-last", "last", "v3"]


def test_a_manifest_covers_every_file_but_itself(tmp_path):
    folder = made(tmp_path, 3)
    (folder / "deepspeed" / MANIFEST).write_text("a file like any other")
    commit(folder, {"version": 3, "cursor": 30})
    written = json.loads((folder / MANIFEST).read_text())
    assert written["state"]["cursor"] == 30
    assert [*written["files"]] == [f"deepspeed/{MANIFEST}", "deepspeed/shard"]


# ---- storage that fails ----


def refused(folder, event, answer):
    command = [sys.executable, CHAOS / "refuses.py", folder, event, str(answer)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(("answer", "calls"), [("stale once", 2), ("lost reply", 1)])
def test_a_rename_that_a_network_file_system_refuses_is_tried_again_and_verified(tmp_path, answer, calls):
    assert refused(tmp_path, "os.rename", answer) == [f"{calls} new ['a.json']"]


def test_one_that_it_goes_on_refusing_is_told_and_leaves_what_was_there(tmp_path):
    told, after = refused(tmp_path, "os.rename", errno.ESTALE)
    assert told == f"{tmp_path}/a.json: Stale file handle: " + storage.ADVICE[errno.ESTALE]
    assert after == "4 old ['a.json']"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_what_cannot_be_written_is_told_with_the_path_and_what_to_do(tmp_path, number):
    told, after = refused(tmp_path, "open", number)
    assert told == f"{tmp_path}/a.json: {os.strerror(number)}: {storage.ADVICE[number]}"
    assert after == "1 old ['a.json']"


def test_what_torch_and_safetensors_make_of_a_full_disk_is_told_as_one(tmp_path):
    with pytest.raises(StorageError, match=r"v3: No space left on device: the disk is full"), storage.stored(tmp_path / "v3"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    with pytest.raises(StorageError, match="File too large"), storage.stored(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")
    with pytest.raises(RuntimeError, match="something else"), storage.stored(tmp_path):
        raise RuntimeError("something else")


def test_a_kill_at_any_line_leaves_a_committed_step_and_what_comes_of_it_is_the_same():
    """Every fourth line of committing, pointing and pruning, in a process that a signal ends there; make chaos has all."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as folder:  # no disk to wait for
        done = subprocess.run(
            [sys.executable, CHAOS / "killpoints.py", folder, "4"], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout)["points"] > 150
