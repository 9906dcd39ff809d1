"""reasoning-gym's data sets: every one gives tasks, and its own scorer judges them."""

import json
import os
import subprocess
import sys

import pytest

from rlreason import puzzles
from rlreason.config import Config, EvalConfig, TasksConfig
from rlreason.errors import RecipeError, ResourceError
from rlreason.rewards.gym import gym
from rlreason.tasks import Tasks
from rlreason.types import Task

MANY_RIGHT = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}  # and none is named the answer
OPTIONS = {"composite": {"datasets": [{"name": "gcd", "weight": 1}, {"name": "rearc", "weight": 1.0}]}}


@pytest.fixture(scope="module")
def tasks():
    """A puzzle of every data set, as it is after a file of samples: `info` went through JSON."""
    made = {name: puzzles.puzzle(name, 1_000_003, **OPTIONS.get(name, {})) for name in puzzles.names()}
    return {
        name: Task(t.id, t.prompt, t.answer, info=json.loads(json.dumps(t.info, sort_keys=True))) for name, t in made.items()
    }


def test_every_data_set_gives_a_task_and_the_oracle_full_marks(tasks):
    assert len(tasks) >= 106
    assert {name for name, task in tasks.items() if task.answer is None} == MANY_RIGHT
    scores = {name: gym(task, f"<answer>{task.answer}</answer>") for name, task in tasks.items() if name not in MANY_RIGHT}
    assert {name: score for name, score in scores.items() if score != 1} == {}
    assert all(isinstance(task.prompt, str) and task.prompt for task in tasks.values())


@pytest.mark.parametrize("name", ["graph_color", "propositional_logic", "rubiks_cube"])
def test_of_many_right_answers_the_example_is_one(tasks, name):
    known = tasks[name].info["entry"]["metadata"]
    example = known.get("example_answer") or known.get("example_correct_answer") or json.dumps(known["possible_answer"])
    assert gym(tasks[name], example) == 1


def test_a_wrong_answer_never_has_full_marks_and_never_raises(tasks):
    for name, task in tasks.items():
        for wrong in ("", "no idea", "{}", "[[1]]", "1e999", "9" * 400, "\x00", '{"a": 1}'):
            score = gym(task, wrong)
            assert score is not None, name
            assert 0 <= score < 1, (name, wrong)


def test_a_scorer_that_takes_any_text_for_true_is_not_asked():
    """reasoning-gym 0.1.25's game_of_life_halting compares bool(text): every answer but an empty one would be right."""
    seen = set()
    for number in range(12):
        task = puzzles.puzzle("game_of_life_halting", number)
        seen.add(task.answer)
        assert [gym(task, text) for text in ("True", "False", "no idea")] == [task.answer == "True", task.answer == "False", 0]
    assert seen == {"True", "False"}


def test_an_entry_that_is_not_quite_json_is_made_so():
    task = puzzles.puzzle("gsm_symbolic", 7)
    assert gym(task, task.answer) == 1, "its metadata holds a fraction"


def test_a_task_that_is_no_puzzle_cannot_be_judged():
    assert gym(Task("0", "1+1?", "2"), "2") is None
    assert gym(Task("0", "1+1?", "2", info={"choices": ["1", "2"]}), "2") is None


def test_a_number_is_one_puzzle_in_any_order_and_any_process():
    """Those that depend on Python's hash seed above all."""
    names = ["isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder", "list_functions", "acre"]
    code = (
        "import sys, json; from rlreason.puzzles import puzzle;"
        "print(json.dumps([[puzzle(n, i).prompt for i in (501, 3, 2)] for n in sys.argv[1:]]))"
    )
    env = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, env=env).stdout
    here = [[puzzles.puzzle(n, i).prompt for i in (2, 3, 501)][::-1] for n in names]
    assert json.loads(told) == here
    assert all(len(set(prompts)) == 3 for prompts in here)


def test_a_maker_that_died_is_told_and_the_next_question_gets_another():
    first = puzzles.puzzle("gcd", 1)
    puzzles._maker().kill()
    puzzles._maker().wait()
    with pytest.raises(ResourceError, match="died with code -9"):
        puzzles.puzzle("gcd", 1)
    assert puzzles.puzzle("gcd", 1) == first


def test_puzzles_as_a_stream_with_some_held_out():
    tasks = Tasks(config("gym.chain_sum", held_out=5, min_terms=2, max_terms=2))
    stream = tasks.stream()
    trained = [next(stream) for _ in range(200)]
    assert len(tasks.held_out) == 5
    assert not {t.prompt for t in trained} & {t.prompt for t in tasks.held_out}
    assert next(tasks.stream(150)) == trained[150]
    assert trained[0].info["gym"] == "chain_sum"


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("gym.cuntdown", {}, r"no data set 'cuntdown'; did you mean gym\.countdown"),
        ("gym.zzz", {}, "no data set 'zzz'; it has .*word_ladder"),
        ("gym.countdown", {"numbers": 3}, r"tasks\.options: gym\.countdown does not take them: .*'numbers'"),
        ("gym.countdown", {"min_numbers": 9, "max_numbers": 3}, r"tasks\.options: gym\.countdown .*AssertionError"),
        ("gym.countdown", {"seed": 3}, "seed is not for a recipe to say"),
        ("gym.composite", {}, "at least one dataset"),
    ],
)
def test_what_reasoning_gym_does_not_take_is_a_mistake_in_the_recipe(name, options, told):
    with pytest.raises(RecipeError, match=told):
        Tasks(config(name, **options))


def config(name, held_out=0, **options):
    return Config(model="m", out="o", tasks=TasksConfig(generate=name, options=options), eval=EvalConfig(tasks=held_out))
