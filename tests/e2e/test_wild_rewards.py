"""A user's reward that raises, hangs and gives no number: the run goes on, without those samples."""

import json
import os
from pathlib import Path

import pytest
from real import rlreason

pytestmark = pytest.mark.e2e

WILD = '''
import os, pathlib, time, zlib

def reward(task, text):
    """By chance, which is the text: an exception, no number, no end (once in a run), or the share of letters."""
    luck = zlib.crc32(text.encode()) % 4
    if luck == 0:
        raise LookupError(f"nothing for {text[:3]!r}")
    if luck == 1:
        return float("nan")
    if luck == 2 and not (once := pathlib.Path(os.environ["ONCE"])).exists():
        once.touch()
        time.sleep(1000)
    return sum(c.isalpha() for c in text) / max(len(text), 1)
'''


@pytest.fixture
def train(models, tmp_path):
    """Two steps of the debug recipe with that reward."""
    (tmp_path / "wild.py").write_text(WILD)
    (tmp_path / "tasks.jsonl").write_text("".join(f'{{"prompt": "say {i}: ", "answer": "{i}"}}\n' for i in range(10)))

    def run(*options):
        out = tmp_path / "run"
        return rlreason(
            "train", "recipes/debug.yaml", f"model={models('qwen2-tied')}", f"tasks.path={tmp_path / 'tasks.jsonl'}",
            f"out={out}", "tasks.reward={wild.reward: 1}", "loop.steps=2", "eval.tasks=0", "rewards.timeout=1", *options,
            out=out, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), str(tmp_path)]),
            ONCE=str(tmp_path / "once"),
        )  # fmt: skip

    return run


def test_a_reward_that_misbehaves_costs_its_samples_and_not_the_run(train):
    run = train("rewards.failures=1")
    assert run.code == 0, run.text
    assert len(run.rows) == 2
    for row in run.rows:
        assert row["failed"] == row["unjudged"] == row["failed/wild.reward"] > 0
        assert 0 < row["reward"] < 1
        assert row["grad_norm"] > 0
    events = [json.loads(line) for line in (run.out / "events.jsonl").read_text().splitlines()]
    told = {e["cause"].partition(":")[0]: e for e in events if e["event"] == "reward"}
    assert set(told) == {"raised LookupError", "gave no finite number", "hung for more than 1 s and was killed"}
    assert all(e["reward"] == "wild.reward" and "tasks.jsonl:" in e["task"] and 0 <= e["sample"] < 4 for e in told.values())
    assert "the reward wild.reward gave no finite number: nan, on sample " in run.text
    shown = [json.loads(line) for path in (run.out / "rollouts").glob("step-*") for line in path.read_text().splitlines()]
    assert {row["reward"] is None for row in shown if row.get("failures")} == {True}
    assert sum("failures" in row for row in shown) == sum(row["failed"] for row in run.rows)


def test_the_run_ends_where_too_many_are_lost(train):
    run = train("rewards.failures=0.05")
    assert run.code == 4, run.text
    assert "answers could not be judged" in run.text
    assert "the reward wild.reward" in run.text
    assert "Traceback" not in run.text
