"""Tasks: files, generators, their order, and what is held out."""

import json

import pytest

from rlreason.config import Config, EvalConfig, TasksConfig
from rlreason.errors import RecipeError
from rlreason.rewards import judge
from rlreason.tasks import GENERATORS, Tasks, load
from rlreason.types import Task


def config(eval_tasks=0, seed=0, **tasks) -> Config:
    return Config(model="m", out="o", seed=seed, tasks=TasksConfig(**tasks), eval=EvalConfig(tasks=eval_tasks))


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows, name="t.jsonl"):
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return str(path)

    return write


def take(stream, n):
    return [t for t, _ in zip(stream, range(n), strict=False)]


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_demonstrations_are_wrong_as_often_as_asked(name):
    tasks = [GENERATORS[name](i, noise=0.6) for i in range(3000)]
    right = sum(judge(t, t.response, {"exact": 1.0})[0] for t in tasks) / 3000
    assert right == pytest.approx(0.4, abs=0.03)
    clean = [GENERATORS[name](i) for i in range(300)]
    assert all(judge(t, t.response, {"exact": 1.0})[0] == 1 for t in clean)
    assert GENERATORS[name](7, noise=0.6) == GENERATORS[name](7, noise=0.6)


def test_a_careless_demonstration_still_thinks_right():
    for i in range(50):
        task = GENERATORS["add"](i, noise=1.0)
        thought, _, answer = task.response.partition("</think>")
        low, high = (int(column.split("=")[1]) for column in thought.removeprefix("<think>").split())
        assert high * 10 + low % 10 == int(task.answer)
        assert answer != f"<answer>{task.answer}</answer>"


@pytest.mark.parametrize("name", GENERATORS)
def test_no_prompt_is_both_trained_on_and_held_out(name):
    tasks = Tasks(config(64, generate=name))
    held = {t.prompt for t in tasks.held_out}
    assert len(tasks.held_out) == 64
    assert not held & {t.prompt for t in take(tasks.stream(), 5000)}


def test_another_seed_gives_other_tasks():
    first = [t.prompt for t in take(Tasks(config(seed=0, generate="sort")).stream(), 20)]
    assert first != [t.prompt for t in take(Tasks(config(seed=1, generate="sort")).stream(), 20)]
    assert first == [t.prompt for t in take(Tasks(config(seed=0, generate="sort")).stream(), 20)]


@pytest.mark.parametrize("where", [0, 1, 6, 7, 8, 20])
def test_a_stream_can_be_taken_up_anywhere_epoch_boundaries_too(jsonl, where):
    path = jsonl(*({"prompt": f"p{i}", "answer": i} for i in range(7)))
    tasks = Tasks(config(path=path))
    whole = [t.id for t in take(tasks.stream(), 30)]
    assert [t.id for t in take(tasks.stream(where), 30 - where)] == whole[where:]
    assert len({t.split("@")[0] for t in whole[:7]}) == len({t.split("@")[0] for t in whole[7:14]}) == 7, "each once an epoch"
    assert len(set(whole)) == 30, "an id names one occurrence"


def test_held_out_of_a_file_are_whole_prompts(jsonl):
    path = jsonl(*({"prompt": f"p{i % 10}", "answer": i} for i in range(40)))
    tasks = Tasks(config(4, path=path))
    held, trained = {t.prompt for t in tasks.held_out}, {t.prompt for t in tasks.rows}
    assert len(held) == 4
    assert not held & trained
    assert len(held | trained) == 10


def test_never_more_than_half_is_held_out(jsonl):
    tasks = Tasks(config(512, path=jsonl(*({"prompt": f"p{i}", "answer": i} for i in range(6)))))
    assert (len(tasks.held_out), len(tasks.rows)) == (3, 3)


def test_columns_may_have_other_names_and_prompts_a_template(jsonl):
    path = jsonl({"question": "1+1?", "target": 2, "how": "numeric", "proof": "<answer>2</answer>"})
    names = {"prompt": "question", "answer": "target", "reward": "how", "response": "proof"}
    tasks = Tasks(config(path=path, fields=names, template="Q: {prompt} {A}"))
    assert tasks.rows == [Task(f"{path}:1", "Q: 1+1? {A}", "2", "<answer>2</answer>", {"numeric": 1.0})]


def test_parquet_and_folders(tmp_path, jsonl):
    import pyarrow
    from pyarrow import parquet

    chat = [{"role": "user", "content": "hi"}]
    table = pyarrow.Table.from_pylist([{"prompt": chat, "answer": "a", "reward": ["exact", "format"]}])
    parquet.write_table(table, tmp_path / "b.parquet")
    jsonl({"prompt": "x", "answer": "y", "id": "mine"}, name="a.jsonl")
    tasks = load(str(tmp_path), TasksConfig())
    assert [t.prompt for t in tasks] == ["x", chat]
    assert tasks[0].id == "mine"
    assert tasks[1].reward == {"exact": 1.0, "format": 1.0}


def test_bad_rows_are_all_told_with_file_and_line(jsonl):
    path = jsonl({"prompt": "p", "answer": 1}, "{oops", {"question": 3}, {"prompt": "p"}, "[1]",
                 {"prompt": [{"text": "hi"}], "answer": 1}, {"prompt": "p", "answer": float("nan")},
                 {"prompt": "p", "answer": "a", "reward": "exakt"}, {"prompt": "p", "answer": "a", "reward": 5},
                 {"prompt": "p", "response": 5})  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        load(path, TasksConfig())
    told = caught.value.problems
    assert [p.split(": ")[0].rpartition(":")[2] for p in told] == ["2", "3", "4", "5", "6", "7", "8", "9", "10"]
    assert "has no prompt; it has question" in told[1]


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "folder").mkdir()
    for name, told in [("empty.jsonl", "is empty"), ("none.jsonl", "there is no such file"), ("bad.jsonl", "is not JSON"),
                       ("bad.parquet", "cannot be read"), ("folder", "holds no .jsonl")]:  # fmt: skip
        with pytest.raises(RecipeError, match=told):
            load(str(tmp_path / name), TasksConfig())


def test_a_generator_that_is_not_there():
    with pytest.raises(RecipeError, match=r"tasks\.options: sort does not take them"):
        Tasks(config(generate="sort", options={"digits": "many"}))
    with pytest.raises(RecipeError, match="not one of sort, add"):
        Tasks(config(generate="srot"))
