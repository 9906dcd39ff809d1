"""What a run writes down, and what people see of it."""

import io
import json
import time

import psutil
import pytest
from rich.console import Console

from rlreason.config import Config, LogConfig
from rlreason.display import Display, duration, line, sparkline
from rlreason.metrics import Journal, describe
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
