"""What a run is refused for before anything starts, beside what the recipe alone tells."""

import json

import pytest

from rlreason.config import AlgorithmConfig, Config, TasksConfig
from rlreason.errors import RecipeError
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
