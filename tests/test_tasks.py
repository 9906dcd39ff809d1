"""Tasks: files, generators, their order, and what is held out."""

import json
from collections import Counter
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlreason.config import Config, EvalConfig, TasksConfig
from rlreason.errors import RecipeError
from rlreason.rewards.answer import exact
from rlreason.tasks import GENERATORS, Tasks, load, origin
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
    right = sum(exact(t, t.response) for t in tasks) / 3000
    assert right == pytest.approx(0.4, abs=0.03)
    clean = [GENERATORS[name](i) for i in range(300)]
    assert all(exact(t, t.response) == 1 for t in clean)
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


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "caf\xe9"}', "is not UTF-8 (byte 0xe9 at 15)"),
        (b'{"prompt": "\\ud800", "answer": 1}', "prompt holds half a character (\\ud800)"),
        (b'{"prompt": [{"role": "user", "content": "\\udfff"}], "answer": 1}', "prompt holds half a character"),
        (b'{"prompt": "p", "response": "\\ud800"}', "response holds half a character"),
        (b'{"prompt": "p", "answer": -Infinity}', "answer is -inf"),
        (b'{"prompt": "p", "answer": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b"[" * 100_000, "is not JSON: maximum recursion depth"),
        (b'{"' + b"x" * 1_000_000 + b'": 1}', "has no prompt; it has xxx"),
    ],
)
def test_a_hostile_row_is_told_in_short(tmp_path, line, problem):
    (tmp_path / "t.jsonl").write_bytes(b'{"prompt": "p", "answer": 1}\n' + line + b"\n")
    with pytest.raises(RecipeError) as caught:
        load(str(tmp_path / "t.jsonl"), TasksConfig())
    (told,) = caught.value.problems
    assert told.partition(":2: ")[2].startswith(problem)
    assert len(told) < 1000


def test_rows_without_an_id_among_rows_with_one(jsonl):
    """As Parquet has them: None where only other rows have one."""
    path = jsonl(*({"prompt": f"p{i}", "answer": i, "id": "mine" if i == 1 else None} for i in range(3)))
    assert [task.id for task in load(path, TasksConfig())] == [f"{path}:1", "mine", f"{path}:3"]


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "folder").mkdir()
    for name, told in [("empty.jsonl", "is empty"), ("none.jsonl", "there is no such file"), ("bad.jsonl", "1: is not UTF-8"),
                       ("bad.parquet", "cannot be read"), ("folder", "holds no .jsonl")]:  # fmt: skip
        with pytest.raises(RecipeError, match=told):
            load(str(tmp_path / name), TasksConfig())


def test_a_generator_that_is_not_there():
    with pytest.raises(RecipeError, match=r"tasks\.options: sort does not take them"):
        Tasks(config(generate="sort", options={"digits": "many"}))
    with pytest.raises(RecipeError, match="not one of sort, add"):
        Tasks(config(generate="srot"))


def tiny(number: int, prompts: int = 3) -> Task:
    return Task(f"t{number}", f"p{number % prompts}", "a")


@given(seed=st.integers(0, 50), start=st.integers(0, 300), n=st.integers(1, 9), name=st.sampled_from([*GENERATORS, "file"]))
@settings(max_examples=60, deadline=None)
def test_for_any_seed_and_start_a_stream_is_the_rest_of_the_whole(tmp_path_factory, seed, start, n, name):
    source = {"generate": name}
    if name == "file":
        path = tmp_path_factory.mktemp("t") / "t.jsonl"
        path.write_text("".join(json.dumps({"prompt": str(i), "answer": i}) + "\n" for i in range(n)))
        source = {"path": str(path)}
    whole = take(Tasks(config(4, seed, **source)).stream(), 320)
    assert take(Tasks(config(4, seed, **source)).stream(start), 20) == whole[start : start + 20]


def test_a_generated_stream_begins_far_away_at_once():
    tasks = Tasks(config(generate="add"))
    made = []
    source = tasks.sources[0]
    add, source.make = source.make, lambda number, **options: made.append(number) or add(number, **options)
    take(tasks.stream(10**12), 100)
    assert len(made) < 150, "about a seventh more than asked for: those whose prompts are held out"


def test_held_out_prompts_of_a_generator_are_distinct_and_all_there_are():
    """Of the 36 prompts of `prompts: 36`, those whose hash is a multiple of 8."""
    tasks = Tasks(config(64, generate=f"{__name__}.tiny", options={"prompts": 36}))
    held = [t.prompt for t in tasks.held_out]
    assert len(held) == len(set(held)) < 10
    assert {t.prompt for t in take(tasks.stream(), 2000)} == {f"p{i}" for i in range(36)} - set(held)


def test_a_generator_of_too_few_prompts_is_told():
    none, every = (next(n for n in range(99) if (crc32(f"p{n}".encode()) % 8 == 0) is held) for held in (False, True))
    only = {"generate": f"{__name__}.only"}
    with pytest.raises(RecipeError, match="so few different prompts that none can be held out"):
        Tasks(config(2, **only, options={"which": none}))
    with pytest.raises(RecipeError, match="so few different prompts that all are held out"):
        next(Tasks(config(**only, options={"which": every})).stream())


def only(number: int, which: int = 0) -> Task:
    return Task(f"t{number}", f"p{which}", "a")


def test_what_is_held_out_does_not_depend_on_templates_or_seeds(jsonl):
    """A stage must not train on what another stage of a pipeline holds out."""
    path = jsonl(*({"prompt": f"p{i}", "answer": i} for i in range(40)))
    plain, around = Tasks(config(9, path=path)), Tasks(config(9, seed=3, path=path, template="Q: {prompt}", system="s"))
    assert [t.id for t in plain.held_out] == [t.id for t in around.held_out]
    assert around.held_out[0].prompt == [{"role": "system", "content": "s"},
                                         {"role": "user", "content": f"Q: {plain.held_out[0].prompt}"}]  # fmt: skip


@pytest.mark.parametrize("source", ["file", "generated"])
def test_held_out_tasks_may_come_from_a_file_of_their_own(jsonl, source):
    path = jsonl({"prompt": "p", "answer": 1}, {"prompt": "q", "answer": 2})
    exam = jsonl({"prompt": "x", "answer": 1}, {"prompt": "y", "answer": 2}, {"prompt": "z", "answer": 3}, name="exam.jsonl")
    recipe = config(2, **({"path": path} if source == "file" else {"generate": "sort"}), template="<{prompt}>")
    recipe.eval.path = exam
    tasks = Tasks(recipe)
    assert [t.prompt for t in tasks.held_out] == ["<x>", "<y>"]
    assert next(tasks.stream()).prompt.startswith("<")


def test_an_id_that_looks_like_an_epoch_is_told_from_one(jsonl):
    tasks = Tasks(config(path=jsonl({"prompt": "p", "answer": 1, "id": "me@3"}, {"prompt": "q", "answer": 1, "id": "me"})))
    ids = [t.id for t in take(tasks.stream(), 6)]
    assert len(set(ids)) == 6
    assert Counter(map(origin, ids)) == {(base, epoch): 1 for base in ("me@3", "me") for epoch in range(3)}
    assert tasks.ids() == {"me@3", "me"}


def test_info_is_an_object_or_json_text_of_one(jsonl, tmp_path):
    import pyarrow
    from pyarrow import parquet

    info = {"tests": ["assert f(1) == 2"]}
    rows = [
        {"prompt": "p", "info": info},
        {"prompt": "p", "answer": "a", "info": json.dumps(info)},
        {"prompt": "p", "answer": 1},
    ]
    assert [t.info for t in load(jsonl(*rows), TasksConfig())] == [info, info, None]
    infos = (info, {"choices": ["1"]}, None)
    table = [{"prompt": "p", "answer": "a", "x": x} for x in infos]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "x.parquet")
    told = [t.info for t in load(str(tmp_path / "x.parquet"), TasksConfig(fields={"info": "x"}))]
    assert told == [info, {"choices": ["1"]}, None]


def test_info_that_is_none_is_told(jsonl):
    with pytest.raises(RecipeError) as caught:
        load(jsonl({"prompt": "p", "answer": 1, "info": "[1]"}, {"prompt": "p", "answer": 1, "info": "{"},
                   {"prompt": "p", "answer": 1, "info": 3}), TasksConfig())  # fmt: skip
    assert [p.split(": ")[0][-1] for p in caught.value.problems] == ["1", "2", "3"]
    assert "neither an object nor the JSON text of one" in caught.value.problems[0]
    assert "not JSON" in caught.value.problems[1]


def test_a_bad_chat_template_and_a_bad_path_are_told_together():
    with pytest.raises(RecipeError) as caught:
        Tasks(config(path="none.jsonl", chat_template="{% if"))
    assert len(caught.value.problems) == 2
