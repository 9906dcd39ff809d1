"""Several sources in one stream: shares, order, resuming, and what a recipe may say of a source."""

import json
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlreason.config import Config, EvalConfig, TasksConfig
from rlreason.errors import RecipeError
from rlreason.tasks import Tasks, origin
from rlreason.tasks.mixture import Schedule


def take(stream, n):
    return [t for t, _ in zip(stream, range(n), strict=False)]


def config(mixture, held_out=0, seed=0, **tasks):
    return Config(model="m", out="o", seed=seed, tasks=TasksConfig(mixture=mixture, **tasks), eval=EvalConfig(tasks=held_out))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of 1 to 9 rows: files[n] has n."""
    folder = tmp_path_factory.mktemp("files")
    for n in range(1, 10):
        rows = [{"prompt": f"{n}-{i}", "answer": i, "id": f"r{i}"} for i in range(n)]
        (folder / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / f"{n}.jsonl") for n in range(10)]


def test_whose_turn_it_is_in_a_table_worked_by_hand():
    """Turn j of a share s has the slots ⌊(j-1)/s⌋ … ⌈j/s⌉ - 1; the earliest deadline goes first.

    Shares 3/4 and 1/4: 0-1, 1-2, 2-3 and 0-3. Shares 1/6, 1/3, 1/2: 0-5; 0-2, 3-5; 0-1, 2-3, 4-5.
    """
    turn = Schedule([Fraction(3), Fraction(1)])
    assert turn.period == 4
    assert [turn(p)[0] for p in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert [turn(p)[1] for p in range(8)] == [0, 1, 2, 0, 3, 4, 5, 1]
    assert [Schedule([Fraction("0.5"), Fraction(1), Fraction("1.5")])(p)[0] for p in range(6)] == [2, 1, 2, 0, 1, 2]


weights = st.lists(st.one_of(st.integers(1, 40), st.sampled_from([0.5, 0.1, 2.5, 0.25])), min_size=1, max_size=7)


@given(weights=weights, lap=st.integers(0, 10**9))
@settings(deadline=None)
def test_after_every_position_each_source_is_less_than_one_turn_from_its_share(weights, lap):
    exact = [Fraction(str(w)) for w in weights]
    turn, had = Schedule(exact), [0] * len(exact)
    for position in range(min(turn.period, 400)):
        source, before = turn(position)
        assert before == had[source]
        had[source] += 1
        for share, n in zip(exact, had, strict=True):
            assert abs(share / sum(exact) * (position + 1) - n) < 1
    source, before = turn(lap * turn.period)
    assert before == lap * turn.counts[source], "however far along, without counting up to there"


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    seed=st.integers(0, 99),
    start=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_a_mixture_can_be_taken_up_anywhere_and_an_epoch_holds_each_row_once(files, sizes, weights, seed, start):
    mixture = {f"s{k}": {"path": files[n], "weight": weights[k]} for k, n in enumerate(sizes)}
    mixture["made"] = {"generate": "add"}
    whole = take(Tasks(config(mixture, seed=seed)).stream(), 100)
    assert take(Tasks(config(mixture, seed=seed)).stream(start), 100 - start) == whole[start:]
    for k, n in enumerate(sizes):
        mine = [t.id for t in whole if t.id.startswith(f"s{k}:")]
        for epoch in range(len(mine) // n):
            assert {origin(i) for i in mine[epoch * n : epoch * n + n]} == {(f"s{k}:r{i}", epoch) for i in range(n)}
    assert len({t.id for t in whole}) == 100


def test_sources_of_one_size_have_orders_of_their_own(files):
    mixture = {"a": {"path": files[9]}, "b": {"path": files[9]}}
    stream = take(Tasks(config(mixture)).stream(), 18)
    orders = [[t.prompt for t in stream if t.id.startswith(name)] for name in "ab"]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_source_may_have_a_reward_fields_and_a_template_of_its_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "1+1", "answer": 2}\n{"q": "1+2", "answer": 3, "reward": "exact"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "hi", "answer": "ho"}\n')
    mixture = {
        "a": {"path": str(tmp_path / "a.jsonl"), "fields": {"prompt": "q"}, "reward": {"numeric": 2}, "template": "{prompt}="},
        "b": {"path": str(tmp_path / "b.jsonl")},
    }
    rows = Tasks(config(mixture, template="<{prompt}>", system="think")).rows
    assert [t.prompt[1]["content"] for t in rows] == ["1+1=", "1+2=", "<hi>"]
    assert [t.prompt[0]["content"] for t in rows] == ["think"] * 3
    assert [t.reward for t in rows] == [{"numeric": 2.0}, {"exact": 1.0}, None]


def test_held_out_tasks_come_from_every_source_in_proportion(files):
    tasks = Tasks(config({"a": {"path": files[9], "weight": 2}, "made": {"generate": "sort"}}, held_out=6))
    assert Counter(t.id.split(":")[0] for t in tasks.held_out) == {"a": 4, "made": 2}
    assert not {t.prompt for t in tasks.held_out} & {t.prompt for t in take(tasks.stream(), 2000)}


def test_what_one_source_holds_out_no_other_trains_on(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": str(i), "answer": i}) + "\n" for i in range(8)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"prompt": str(i), "answer": i}) + "\n" for i in range(4, 40)))
    tasks = Tasks(config({n: {"path": str(tmp_path / f"{n}.jsonl")} for n in "ab"}, held_out=16))
    held, trained = {t.prompt for t in tasks.held_out}, {t.prompt for t in tasks.rows}
    assert not held & trained
    assert {t.prompt for t in tasks.held_out if t.id.startswith("a:")} & set(map(str, range(4, 8))), "some are in both files"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"path": "none.jsonl"}, r"tasks\.mixture\.maths\.path: none\.jsonl: there is no such file"),
        ({"generate": "srot"}, r"tasks\.mixture\.maths\.generate: 'srot' is not one of"),
        ({"generate": "sort", "options": {"digit": 3}}, r"tasks\.mixture\.maths\.options: sort does not take them"),
        ({"generate": "sort", "wieght": 3}, r"tasks\.mixture\.maths\.wieght: there is no .*did you mean weight\?"),
        ({"generate": "sort", "weight": 0}, r"tasks\.mixture\.maths\.weight: 0 is not above 0"),
        ({"generate": "sort", "weight": float("nan")}, "weight: nan is not above 0"),
        ({"generate": "sort", "weight": "much"}, r"weight: 'much' is not int or float"),
        ({"generate": "sort", "weight": True}, "weight: True is not"),
        ({"generate": "sort", "reward": {"exakt": 1}}, r"tasks\.mixture\.maths\.reward: .*exakt"),
        ({"generate": "sort", "reward": {"exact": "x"}}, r"tasks\.mixture\.maths\.reward is neither"),
        ({"generate": "sort", "fields": {"promt": "q"}}, r"tasks\.mixture\.maths\.fields\.promt: is not one of"),
        ({"generate": "sort", "template": "no place"}, r"tasks\.mixture\.maths\.template: has no {prompt}"),
        ({"generate": "sort", "path": "a.jsonl"}, r"tasks\.mixture\.maths\.path: say where"),
        ({}, r"tasks\.mixture\.maths\.path: say where"),
        ("a.jsonl", r"tasks\.mixture\.maths: expected a mapping"),
    ],
)
def test_a_bad_source_is_a_mistake_with_its_key(source, told):
    with pytest.raises(RecipeError, match=told):
        Tasks(config({"good": {"generate": "add"}, "maths": source}))


def test_all_bad_sources_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        Tasks(config({"a": {"path": "a.jsonl"}, "b": {"generate": "srot"}, "c": {"generate": "add"}}))
    assert len(caught.value.problems) == 2


def test_a_reward_with_dots_in_its_name_survives_the_recipe(files):
    """Overrides are cut at dots: my_package.my_reward arrives as {my_package: {my_reward: 1}}."""
    mixture = {"a": {"path": files[1], "reward": {"rlreason": {"rewards": {"answer": {"exact": 0.5}}}, "format": 1}}}
    assert Tasks(config(mixture)).rows[0].reward == {"rlreason.rewards.answer.exact": 0.5, "format": 1.0}


def test_weights_too_fine_for_a_table_are_refused():
    with pytest.raises(RecipeError, match="come out even only after 10000001 tasks"):
        Schedule([Fraction("0.0000001"), Fraction(1)])
