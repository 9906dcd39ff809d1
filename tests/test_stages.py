"""What a run is refused for before anything starts, beside what the recipe alone tells."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason import manifest, stages
from rlreason.config import AlgorithmConfig, Config, SampleConfig, TasksConfig
from rlreason.errors import RecipeError, StorageError
from rlreason.model import directory
from rlreason.stages import inputs

MADE = {"from_config": {"model_type": "qwen2"}, "characters": "01"}


def refused(tmp_path, tasks: TasksConfig, **more) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        inputs(Config(model=MADE, out=str(tmp_path / "run"), tasks=tasks, **more))
    return caught.value.problems


def test_a_reward_that_cannot_judge_these_tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "p", "info": {"topic": "none of theirs"}}) + "\n")
    told = refused(tmp_path, TasksConfig(path=str(path), reward={"gym": 1.0, "code": 1.0}))
    assert [problem.split(": ")[1] for problem in told] == ["gym", "code"]
    path.write_text(json.dumps({"prompt": "p", "info": {"tests": ["assert f(1) == 1"]}}) + "\n")
    inputs(Config(model=MADE, out=str(tmp_path / "run"), tasks=TasksConfig(path=str(path), reward={"code": 1.0})))


def test_a_row_may_name_such_a_reward(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": "1", "reward": "gym"}) + "\n")
    assert "tasks.reward: gym" in refused(tmp_path, TasksConfig(path=str(path), reward={"exact": 1.0}))[0]


def test_a_teacher_that_is_not_there_or_reads_other_tokens(tmp_path):
    tasks = TasksConfig(generate="sort", reward={"exact": 1.0})
    (tmp_path / "other").mkdir()
    other = directory(MADE | {"characters": "ab"}, tmp_path / "other")
    for name, told in (("./nowhere", "is no directory here"), (other, "has another tokenizer")):
        algorithm = AlgorithmConfig(kl_credit=1.0, reference=name)
        problem = refused(tmp_path, tasks, algorithm=algorithm)[0]
        assert problem.startswith("algorithm.reference: ")
        assert told in problem


# ---- a run that goes on, or may not ----


@pytest.fixture
def begun(tmp_path) -> Config:
    """A run of kind sample with all its answers there: it asks nobody, and ends at once."""
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"id": "a", "prompt": "p", "answer": "1"}) + "\n")
    tasks = TasksConfig(path=str(path), reward={"exact": 1.0})
    config = Config(model=MADE, out=str(tmp_path / "run"), kind="sample", tasks=tasks, sample=SampleConfig(keep="all"))
    manifest.begin(config, "run")
    manifest.amend(tmp_path / "run", weights={"begin": "0"})
    sample = {"text": "1", "reward": 1.0, "parts": {"exact": 1.0}, "truncated": False, "length": 1, "vote": "1"}
    row = {"task": "a", "metric": "exact", "domain": "", "samples": [sample], "prompt": "p", "answer": "1", "info": None}
    (tmp_path / "run" / "answers").mkdir()
    answered = {"cursor": 1, "tasks": [row | {"rewards": None}]}
    (tmp_path / "run" / "answers" / "000001.json").write_text(json.dumps(answered))
    return config


def events(config: Config) -> list[dict]:
    with open(f"{config.out}/events.jsonl") as file:
        return [json.loads(line) for line in file]


def test_a_changed_recipe_is_refused_with_the_difference_and_goes_on_by_force(begun, capsys):
    begun.seed = 3
    with pytest.raises(RecipeError) as caught:
        stages.run(begun, "run")
    assert "seed was 0, is 3" in str(caught.value)
    assert "--force" in str(caught.value)
    assert not os.path.exists(f"{begun.out}/events.jsonl")
    assert stages.run(begun, "run", force=True)["samples"] == 1
    assert events(begun)[0] | {"at": 0} == {"at": 0, "event": "forced", "changes": ["seed was 0, is 3"]}
    assert "forced: seed was 0, is 3" in capsys.readouterr().err
    assert manifest.read(Path(begun.out))["recipe"]["seed"] == 3


def test_a_changed_data_set_is_told_by_its_name(begun):
    with open(begun.tasks.path, "a") as file:
        file.write(json.dumps({"id": "b", "prompt": "q", "answer": "2"}) + "\n")
    with pytest.raises(RecipeError, match=r"tasks.path: .*tasks.jsonl is not what it was"):
        stages.run(begun, "run")


def test_what_is_done_goes_on_by_force_but_a_stage_stays_done(begun, tmp_path):
    stages.run(begun, "run")
    assert stages.run(begun, "run", force=True)["samples"] == 1
    assert "forced" not in [e["event"] for e in events(begun)], "nothing had changed"
    begun.seed = 3
    assert stages.run(begun, "run", root=tmp_path, force=True)["samples"] == 1
    assert "forced" not in [e["event"] for e in events(begun)]
    with pytest.raises(RecipeError, match="seed was 0, is 3"):
        stages.run(begun, "run")
    (tmp_path / "run" / "answers").mkdir()
    row = (tmp_path / "run" / "answers.jsonl").read_text()
    (tmp_path / "run" / "answers" / "000001.json").write_text(json.dumps({"cursor": 1, "tasks": [json.loads(row)]}))
    stages.run(begun, "run", force=True)
    assert "forced" in [e["event"] for e in events(begun)]


def test_force_where_there_is_nothing_to_go_on_with_is_refused_for_it_may_be_the_wrong_folder(begun, tmp_path):
    begun.out = str(tmp_path / "other")
    with pytest.raises(RecipeError, match="other holds no work to go on with"):
        stages.run(begun, "run", force=True)


def test_a_run_on_more_or_fewer_processes_says_so_and_goes_on(begun):
    begun.rollout.workers = 3
    stages.run(begun, "run")
    assert (events(begun)[0]["event"], events(begun)[0]["changes"]) == ("rescaled", ["rollout.workers was 1, is 3"])


def test_a_folder_that_another_process_holds_is_refused_with_its_name_and_free_when_it_is_dead(begun):
    hold = "import sys, time; from pathlib import Path; from rlreason import stages\nwith stages.claimed(Path(sys.argv[1])):\n"
    hold += "    print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", hold, begun.out], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match=f"another process is running in .*process {process.pid} on "):
            stages.run(begun, "run")
    finally:
        process.kill()
        process.wait()
    assert stages.run(begun, "run")["samples"] == 1


def test_what_cannot_be_claimed_is_told_with_the_path_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), stages.claimed(tmp_path / "file" / "run"):
        pass


def test_two_runs_that_are_moved_aside_in_one_second_do_not_meet(tmp_path):
    for _ in range(3):
        (tmp_path / "run").mkdir()
        stages.aside(tmp_path / "run")
    assert len(list(tmp_path.glob("run.*"))) == 3
