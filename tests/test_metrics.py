"""What a run writes down, and what people see of it."""

import io
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from rich.console import Console

from rlreason.config import Config, LogConfig
from rlreason.display import Display, duration, line, sparkline
from rlreason.errors import StorageError
from rlreason.metrics import CLIP, Journal, Lines, describe
from rlreason.types import Group, Task


@pytest.fixture
def groups(sample):
    right, wrong, unjudged = sample(2, 3, 1.1), sample(2, 5, 0.1), sample(2, 1)
    right.parts, wrong.parts = {"exact": 1.0, "format": 1.0}, {"exact": 0.0, "format": 1.0}
    wrong.truncated = True
    return [Group(Task("a", "1+1=", "2"), [right, wrong]), Group(Task("b", "x", "y"), [unjudged])]


def test_a_batch_is_described_by_hand(groups):
    assert describe(groups) == pytest.approx(
        {
            "length": 3,
            "truncated": 1 / 3,
            "tokens": 9,
            "unjudged": 1,
            "failed": 0,
            "flat": 0.5,
            "reward": 0.6,
            "reward/exact": 0.5,
            "reward/format": 1,
        }
    )


TIMES = {"time/step": 2.0, "time/rollout": 1.5, "time/train": 0.5, "time/elapsed": 2.0}


def test_a_journal_holds_each_step_once_across_a_restart(tmp_path, groups):
    config = Config(model="m", out=str(tmp_path))
    journal = Journal(config)
    for step in (1, 2, 3):
        journal.step(step, groups, {"loss": float("nan")} | TIMES)
    journal.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 4, "los')  # cut off by a crash
    journal = Journal(config)
    journal.back_to(2)
    journal.step(3, groups, {"loss": 1.0} | TIMES)
    journal.close()
    rows = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in rows] == [(1, None), (2, None), (3, 1.0)]
    assert rows[0]["time/tokens_per_second"] == 4.5


def test_hostile_text_is_written_and_read_back(tmp_path, sample):
    answer = sample(1, 1, 0.0)
    answer.text = "\x00 \ud800 </script> \u202e " + "x" * 1000
    journal = Journal(Config(model="m", out=str(tmp_path)))
    journal.step(1, [Group(Task("a", "p", "a"), [answer])], TIMES)
    journal.close()
    row = json.loads((tmp_path / "rollouts" / "step-000001.jsonl").read_text())
    assert row["text"].startswith("\x00 ? </script>")


def test_an_answer_of_a_megabyte_is_clipped_for_people(tmp_path, sample):
    """Its beginning and its end are shown; what is trained on are tokens."""
    plain, chat = sample(1, 1, 0.0), sample(1, 1, 0.0)
    plain.text = "a" + "x" * 10**6 + "z"
    messages = [{"role": "user", "content": "b" + "y" * 10**6}, {"role": "user", "content": "short"}]
    journal = Journal(Config(model="m", out=str(tmp_path)))
    journal.step(1, [Group(Task("a", "p" * 10**6, "a"), [plain]), Group(Task("b", messages, "a"), [chat])], TIMES)
    journal.close()
    file = tmp_path / "rollouts" / "step-000001.jsonl"
    assert file.stat().st_size < 3 * CLIP + 3000
    one, two = map(json.loads, file.read_text().splitlines())
    assert (one["text"][:2], one["text"][-2:]) == ("ax", "xz")
    assert len(one["text"]) == len(one["prompt"]) == CLIP + 3
    assert two["prompt"][0]["content"].startswith("byyy")
    assert len(two["prompt"][0]["content"]) == CLIP + 3
    assert two["prompt"][1] == messages[1]
    assert len(plain.text) == 10**6 + 2, "what is shown is clipped, and not what was said"


# ---- lines ----


def numbers(path):
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


FULL = """
import json, resource, sys
from pathlib import Path
from rlreason.metrics import Lines

path = Path(sys.argv[1])
lines = Lines(path)
told = [str(lines.add({"n": 1, "text": "x" * 100}))]
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))  # there is room for half a line
told += [str(lines.add({"n": n, "text": "x" * 100})) for n in (2, 3)]
told.append(path.read_bytes().endswith(b"}\\n") and len(lines.read()))
told.append(len(lines.waiting))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
told.append(str(lines.add({"n": 4})))
lines.close()
print(json.dumps(told))
"""


def test_what_a_full_disk_refuses_is_written_in_order_when_there_is_room_again(tmp_path):
    path = tmp_path / "lines.jsonl"
    run = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    first, second, third, whole, waiting, last = json.loads(run.stdout)
    assert (first, last) == ("None", "None")
    assert "No space left" in second or "too large" in second
    assert "too large" in third or "No space left" in third
    assert (whole, waiting) == (1, 2), "no half line is left in the file, and nothing is lost"
    assert numbers(path) == [1, 2, 3, 4]


def test_what_could_not_be_written_to_the_end_is_told(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = Lines(path)
    os.dup2(os.open("/dev/full", os.O_WRONLY), lines.file)
    assert "No space left" in str(lines.add({"n": 1}))
    with pytest.raises(StorageError, match=r"lines.jsonl: 1 lines could not be written: .*No space left"):
        lines.close()


@pytest.mark.parametrize("torn", [b'{"n": 3, "te', b"{", b'{"n": 3}', b"\xff\x00"])
def test_a_half_line_that_a_crash_left_does_not_swallow_the_next(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + torn)
    lines = Lines(path)
    assert lines.add({"n": 4}) is None
    lines.close()
    assert numbers(path) == [1, 2, 4]


def test_nothing_but_half_a_line_is_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1')
    lines = Lines(path)
    assert lines.read() == []
    lines.add({"n": 2})
    lines.close()
    assert numbers(path) == [2]


def test_a_line_that_is_damaged_is_told_and_nothing_is_taken_back(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    lines = Lines(path)
    with pytest.raises(StorageError, match=r"lines.jsonl is damaged: Expecting value"):
        lines.cut(lambda row: False)
    assert path.read_text().count("\n") == 3


def test_lines_are_taken_back_from_the_end_those_that_wait_too(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = Lines(path)
    for n in (1, 2):
        lines.add({"n": n})
    disk = os.dup(lines.file)
    os.dup2(os.open("/dev/full", os.O_WRONLY), lines.file)
    for n in (3, 4):
        assert lines.add({"n": n})
    os.dup2(disk, lines.file)
    lines.cut(lambda row: row["n"] <= 3)
    assert lines.add({"n": 5}) is None
    lines.cut(lambda row: row["n"] <= 3)
    lines.add({"n": 6})
    lines.close()
    assert numbers(path) == [1, 2, 3, 6]


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_works_wherever_it_is_shown(width, terminal, groups):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width)
    with Display("reason", 10, console) as display:
        for step in range(1, 4):
            display.step({"step": step} | describe(groups) | TIMES | {"time/tokens_per_second": 4.5})
        display.say("done")
    shown = console.file.getvalue()
    assert "reward" in shown
    assert "done" in shown


def test_a_step_as_plain_text(groups):
    text = line("reason", {"step": 3, "reward": 0.6, "policy_gap": 2.5e-7} | TIMES, 10, 14.0)
    assert text == "reason 3/10  reward 0.6  policy_gap 2.5e-07  2.00 s = 1.50 rollout + 0.50 train  eta 14s"


def test_small_things():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1]) == "▁▁"
    assert len(sparkline(list(range(1000)))) == 32
    assert [duration(s) for s in (5, 65, 3700)] == ["5s", "1m05s", "1h01m"]


def test_wandb_offline(tmp_path, groups, monkeypatch):
    """The real thing, with no server: its own file holds the run, and nothing went wrong."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    journal = Journal(Config(model="m", out=str(tmp_path), log=LogConfig(wandb="test")))
    for step in (1, 2):
        journal.step(step, groups, dict(TIMES))
    journal.close()
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # its service may write after `finish` has returned
    while b"reward/exact" not in written.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (tmp_path / "events.jsonl").read_text()
    assert not [p for p in psutil.Process().children(recursive=True) if "wandb" in p.name()], "its service has ended"


def test_a_journal_is_closed_whatever_ends_the_run(tmp_path):
    journal = Journal(Config(model="m", out=str(tmp_path)))

    def run():
        with journal:
            journal.event("start")
            raise RuntimeError("the run")

    with pytest.raises(RuntimeError, match="the run"):
        run()
    assert json.loads((tmp_path / "events.jsonl").read_text())["event"] == "start"
    journal.event("late")  # W&B's thread may outlive the run
    assert "late" not in (tmp_path / "events.jsonl").read_text()
