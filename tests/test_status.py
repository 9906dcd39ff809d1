"""How far a run is, from its files alone."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from rlreason import checkpoint, manifest, pipeline, stages, status
from rlreason.cli import main
from rlreason.config import to_yaml
from rlreason.errors import StorageError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Three stages in a row, of which none has begun."""
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    Path("stage.yaml").write_text("tasks: {path: t.jsonl}\nloop: {steps: 5}\n")
    Path("pipe.yaml").write_text(
        "base: some/model\nout: run\nstages:\n  a: {recipe: stage.yaml, set: [model=$base]}\n"
        "  b: {recipe: stage.yaml, set: [model=$a]}\n  c: {recipe: stage.yaml, set: [model=$b]}\n"
    )
    made = pipeline.load(Path("pipe.yaml"))
    made.out.mkdir()
    whole = "\n".join(
        f"  {name}:\n" + "".join(f"    {line}\n" for line in to_yaml(c).splitlines()) for name, c in made.stages.items()
    )
    (made.out / "recipe.yaml").write_text(f"stages:\n{whole}")
    (made.out / "pipeline.json").write_text(json.dumps({"base": "some/model", "seed": 0, "needs": made.needs}))
    return made


def begin(run, name: str) -> Path:
    config = run.stages[name]
    manifest.begin(config, name, run.out)
    out = Path(config.out)
    manifest.amend(out, weights={"begin": "0"})
    return out


def end(run, name: str) -> Path:
    out = begin(run, name)
    (out / "weights" / "v5").mkdir(parents=True)
    (out / "weights" / "v5" / "model.safetensors").write_text(name)
    checkpoint.point(out / "weights" / "last", "v5")
    (out / "metrics.jsonl").write_text('{"step": 4}\n{"step": 5}\n')
    scores = {f"accuracy_{when}": {"mean": mean} for when, mean in (("before", 0.25), ("after", 0.75))}
    (out / "summary.json").write_text(json.dumps(scores | {"regressions": ["code: 0.5 -> 0.4"] if name == "b" else []}))
    manifest.finish(run.stages[name], 75.0)
    return out


def states(run) -> list[str]:
    return [stage.state for stage in status.stages(run.out)]


def test_a_stage_waits_runs_is_cut_off_fails_and_is_done(run):
    assert states(run) == ["waiting"] * 3
    out = begin(run, "a")
    assert states(run) == ["cut off", "waiting", "waiting"]
    with stages.claimed(out):
        assert states(run) == ["running", "waiting", "waiting"]
    manifest.amend(out, state="failed", why="rollout-0 died\nmore")
    failed = status.stages(run.out)[0]
    assert (failed.state, failed.note) == ("failed", "rollout-0 died")
    end(run, "a")
    assert states(run) == ["done", "waiting", "waiting"]


def test_a_done_stage_shows_what_it_took_its_time_its_steps_and_scores(run):
    end(run, "a")
    end(run, "b")
    found = status.stages(run.out)[1]
    assert (found.kind, found.takes, found.seconds, found.steps, found.score) == ("train", ["a"], 75.0, "5/5", "0.250 → 0.750")
    assert found.note == "worse: code: 0.5 -> 0.4"


def test_it_is_the_same_from_anywhere(run, tmp_path, monkeypatch):
    for name in "abc":
        end(run, name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (tmp_path / "run", Path("../run")):
        assert [stage.state for stage in status.stages(path)] == ["done"] * 3


def test_what_is_stale_and_what_takes_it_up(run):
    for name in "abc":
        end(run, name)
    Path("t.jsonl").write_text(json.dumps({"prompt": "q", "answer": "a"}) + "\n")
    found = status.stages(run.out)
    assert [stage.state for stage in found] == ["stale"] * 3
    assert found[0].note == "tasks.path: t.jsonl is not what it was"


def test_work_of_other_code_is_told(run):
    out = end(run, "a")
    manifest.amend(out, code={"version": "0.0.9", "sha256": "0123456789"})
    assert status.stages(run.out)[0].note == "made by other code: rlreason 0.0.9 (01234567)"


def test_a_run_without_stages_is_one_stage(run):
    out = end(run, "a")
    (out / "recipe.yaml").write_text(to_yaml(run.stages["a"]))
    assert [stage.name for stage in status.stages(out)] == ["a"]


def test_what_is_shown_has_a_line_per_stage(run):
    end(run, "a")
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    status.show(run.out, console)
    text = console.export_text()
    assert "a" in text
    assert "1m15s" in text
    assert "waiting" in text


def test_a_folder_that_is_no_run_is_told(tmp_path, capsys):
    with pytest.raises(StorageError, match="no run's folder"):
        status.stages(tmp_path)
    assert main(["status", str(tmp_path)]) == 5
    assert "no run's folder" in capsys.readouterr().err
