"""Scores and their intervals."""

import json
import time

import numpy as np
import pytest

from rlreason.errors import RolloutError
from rlreason.evaluate import (
    Evaluation,
    Regression,
    Score,
    accuracy,
    bootstrap,
    evaluation,
    interval,
    regressions,
    row,
    table,
    wilson,
)
from rlreason.types import Group, Task


@pytest.mark.parametrize(
    ("mean", "n", "low", "high"),  # Wilson's interval, from its formula with a pocket calculator
    [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.9, 256, 0.8572, 0.9309)],
)
def test_wilson(mean, n, low, high):
    score = wilson(mean, n)
    assert (score.low, score.high) == pytest.approx((low, high), abs=2e-4)


def test_a_metric_beyond_0_and_1_has_a_normal_interval():
    score = interval([-1.0, 3.0, 1.0])  # standard deviation 2, so 1.96 * 2 / sqrt 3 either way
    assert (score.low, score.mean, score.high) == pytest.approx((-1.2632, 1.0, 3.2632), abs=1e-4)


def group(sample, name: str, parts: list[float | None], **more) -> Group:
    samples = [sample(1, 1) for _ in parts]
    for s, part in zip(samples, parts, strict=True):
        s.parts = {"exact": part}
    return Group(Task(name, "", **more), samples)


def test_tasks_count_the_same_and_the_unjudged_do_not_count(sample):
    score = accuracy(
        [group(sample, "a", [1.0, 0.0]), group(sample, "b", [1.0, None]), group(sample, "c", [None, None])], "exact"
    )
    assert (score.mean, score.n) == (0.75, 2)


def test_a_task_with_rewards_of_its_own_is_scored_by_the_first_of_them(sample):
    assert accuracy([group(sample, "a", [1.0], reward={"exact": 1.0})], "numeric").mean == 1


def test_nothing_judged_is_an_error(sample):
    with pytest.raises(RolloutError, match="could be judged"):
        accuracy([group(sample, "a", [None])], "exact")


def test_an_interval_is_where_resampled_means_lie():
    score = bootstrap([0.0] * 50 + [1.0] * 50, seed=0)  # se = 0.5 / 10
    assert (score.mean, score.n) == (0.5, 100)
    assert (score.low, score.high) == pytest.approx((0.402, 0.598), abs=0.02)
    assert score == bootstrap([0.0] * 50 + [1.0] * 50, seed=0)
    assert score != bootstrap([0.0] * 50 + [1.0] * 50, seed=1)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    draw = np.random.default_rng(0)
    scores = [bootstrap(draw.exponential(size=100), seed=i) for i in range(200)]
    held = sum(score.low <= 1 <= score.high for score in scores)  # 0.95 · 200 = 190, a little less for a skewed one
    assert 178 <= held <= 198


@pytest.mark.parametrize("values", [[0.3], [0.1] * 7, [-2.5]])
def test_an_interval_of_one_value_is_that_value(values):
    score = bootstrap(values, seed=0)
    assert (score.low, score.high) == pytest.approx((values[0], values[0]), abs=1e-15)
    assert score.low <= score.mean <= score.high


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_there_is_no_interval_of_nothing_and_of_no_numbers(values):
    with pytest.raises(ValueError, match="no interval"):
        bootstrap(values, seed=0)


def line(task, answers, domain="", metric="exact"):
    """A row whose answers are (vote, what the metric gave) or (vote, that, other parts)."""
    samples = [
        {"parts": {metric: value} | dict(*more), "vote": vote, "length": 1, "truncated": False}
        for vote, value, *more in answers
    ]
    return {"task": task, "domain": domain, "metric": metric, "samples": samples}


ROWS = [
    line("a", [("5", 1.0, {"format": 1.0}), ("5", 1.0, {"format": 0.0}), ("6", 0.0, {"format": None})], "sums"),
    line("b", [("1", 0.0), ("2", 0.0), ("3", 1.0)], "sums"),
    line("c", [("x", 1.0), ("y", None)], "words"),  # of fewer than three judged answers
    line("d", [("x", None)], "words"),  # of none
    line("e", [("7", 0.0), ("8", 0.0), ("8", 0.0)]),  # of no domain
]


def test_scores_by_hand():
    result = evaluation(ROWS, ks=[3], seed=0)
    means = {name: (round(score.mean, 6), score.n) for name, score in result.scores.items()}
    assert means == {
        "pass@1": (0.5, 4),  # (2/3 + 1/3 + 1 + 0) / 4
        "pass@3": (round(2 / 3, 6), 3),  # a and b hold a right answer, e none; c has no three
        "maj@3": (round(4 / 9, 6), 3),  # 1, a third (three tied), 0
        "format": (0.5, 1),
    }
    assert result.unjudged == 1
    assert result.tasks["a"] == {"domain": "sums", "n": 3, "c": 2, "mean": pytest.approx(2 / 3)}
    assert [*result.tasks] == ["a", "b", "c", "e"]


def test_a_domain_has_the_scores_of_its_tasks():
    domains = evaluation(ROWS, ks=[1, 3], seed=0).domains
    assert {name: (scores["pass@1"].mean, scores["pass@1"].n) for name, scores in domains.items()} == {
        "sums": (0.5, 2),
        "words": (1.0, 1),
    }
    assert [*domains["words"]] == ["pass@1"]  # no task of it has three answers
    assert evaluation([line("a", [("", 1.0)])]).domains == {}


def test_a_graded_metric_has_a_mean_beside_its_passes():
    result = evaluation([line("a", [("", 0.5), ("", 1.0)]), line("b", [("", 0.0), ("", 0.25)])])
    assert {name: score.mean for name, score in result.scores.items()} == {"pass@1": 0.25, "mean": 0.4375}


def test_the_order_of_the_rows_changes_nothing():
    assert evaluation(ROWS, [1, 3], seed=3) == evaluation(ROWS[::-1], [3, 1], seed=3)


def test_equal_prompts_of_different_ids_are_two_tasks_and_an_id_is_one(sample):
    groups = [Group(Task(i, "1 + 1 = ?", "2"), [sample(1, 1)]) for i in "ab"]
    for group, part in zip(groups, (1.0, 0.0), strict=True):
        group.samples[0].parts = {"exact": part}
    result = evaluation(row(group, "exact") for group in groups)
    assert {name: task["mean"] for name, task in result.tasks.items()} == {"a": 1.0, "b": 0.0}
    with pytest.raises(ValueError, match="two tasks have the id 'a'"):
        evaluation([row(groups[0], "exact"), row(groups[0], "exact")])


def test_a_k_is_a_number_of_answers():
    with pytest.raises(ValueError, match="pass@0"):
        evaluation(ROWS, ks=[0])


def test_nothing_judged_has_no_scores():
    assert evaluation([line("a", [("", None)]), line("b", [])]) == Evaluation({}, {}, {}, 2)


def test_a_row_keeps_what_a_task_is_measured_by_and_what_its_answers_say(sample):
    answers = [sample(1, 3), sample(1, 2)]
    for answer, text in zip(answers, ("It is \\boxed{1,000}.", "It is 1000 or"), strict=True):
        answer.text, answer.parts = text, {"math": 1.0, "format": 0.0}
    answers[1].truncated = True
    group = Group(Task("t", "?", "1000", reward={"math": 1.0, "format": 0.1}, domain="sums"), answers)
    assert json.loads(json.dumps(row(group, "numeric"))) == {
        "task": "t",
        "domain": "sums",
        "metric": "math",  # the first of the task's own
        "samples": [
            {"parts": {"math": 1.0, "format": 0.0}, "vote": "1000", "length": 3, "truncated": False},
            {"parts": {"math": 1.0, "format": 0.0}, "vote": "", "length": 2, "truncated": True},
        ],
    }


def test_an_evaluation_survives_json():
    result = evaluation(ROWS, [1, 3], seed=0)
    assert Evaluation.from_dict(json.loads(json.dumps(result.dict(), allow_nan=False))) == result


def of(means, domain=""):
    return Evaluation({}, {}, {name: {"domain": domain, "n": 4, "c": 0, "mean": mean} for name, mean in means.items()})


@pytest.mark.parametrize(
    ("before", "after", "expected"),  # means by task; (difference, standard error, n) of a regression
    [
        ({"a": 0.9, "b": 0.5, "c": 0.7}, {"a": 0.6, "b": 0.3, "c": 0.3}, (-0.3, 0.1 / 3**0.5, 3)),  # d = -0.3, -0.2, -0.4
        ({"a": 0.9, "b": 0.5, "c": 0.7}, {"a": 0.5, "b": 0.5, "c": 0.7}, None),  # d = -0.4, 0, 0: se is 0.133 too
        ({"a": 0.8, "b": 0.3}, {"a": 0.7, "b": 0.2}, (-0.1, 0, 2)),  # both alike: any loss counts
        ({"a": 0.8, "b": 0.3}, {"a": 0.9, "b": 0.4}, None),
        ({"a": 0.8, "b": 0.3}, {"a": 0.8, "b": 0.3}, None),
        ({"a": 1.0}, {"a": 0.0}, None),  # one task shows nothing
        ({"a": 1.0, "b": 1.0, "x": 1.0}, {"a": 0.5, "b": 0.5, "y": 0.0}, (-0.5, 0, 2)),  # those that both answered
        ({"a": 1.0}, {"b": 0.0}, None),
    ],
)
def test_regressions_by_hand(before, after, expected):
    found = [(r.difference, r.error, r.n) for r in regressions(of(before), of(after)) if r.domain == ""]
    assert found == ([pytest.approx(expected)] if expected else [])


def test_pairing_sees_what_the_spread_of_tasks_would_hide():
    before = {str(i): i / 10 for i in range(11)}  # standard deviation 0.33, so 0.1 of a mean of 11
    after = {name: max(0, mean - 0.05) for name, mean in before.items()}
    assert [round(r.difference, 4) for r in regressions(of(before), of(after))] == [-0.0455]  # 10 of 11 lose 0.05


def test_a_domain_that_loses_is_told_though_the_whole_gains():
    before, after = of({"a": 0.0, "b": 0.0, "c": 0.0}, "sums"), of({"a": 1.0, "b": 1.0, "c": 1.0}, "sums")
    before.tasks.update(of({"x": 0.5, "y": 0.75}, "words").tasks)
    after.tasks.update(of({"x": 0.25, "y": 0.5}, "words").tasks)
    assert regressions(before, after) == [Regression("words", 0.625, 0.375, -0.25, 0.0, 2)]
    assert [r.domain for r in regressions(after, before)] == ["sums"]  # the whole: -0.5, of a standard error of 0.306


def test_a_regression_tells_people():
    assert str(Regression("words", 0.8125, 0.75, -0.0625, 0.025, 256)) == (
        "words: 0.812 -> 0.750, a loss of 0.062 (2.5 standard errors, n = 256)"
    )
    assert str(Regression("", 1.0, 0.5, -0.5, 0.0, 2)) == (
        "all: 1.000 -> 0.500, a loss of 0.500 (the same on every task, n = 2)"
    )


def test_a_table_has_the_whole_and_the_domains():
    whole = {"pass@1": Score(0.8125, 4, 0.79, 0.831), "maj@3": Score(1.0, 2, 1.0, 1.0)}
    assert table(Evaluation(whole, {"words": {"pass@1": Score(0.5, 1, 0.5, 0.5)}}, {})) == [
        ("", "all", "words"),
        ("pass@1", "0.812 [0.79, 0.83]", "0.500 [0.50, 0.50]"),
        ("maj@3", "1.000 [1.00, 1.00]", "–"),
    ]


def test_ten_thousand_tasks_of_sixteen_answers_take_seconds():
    draw = np.random.default_rng(0)
    chance = draw.beta(0.7, 0.7, size=(10_000, 1))
    right, said = draw.random((10_000, 16)) < chance, draw.geometric(0.3, (10_000, 16))
    rows = [
        line(str(i), [("0" if r else str(s), float(r), {"format": 1.0}) for r, s in zip(*both, strict=True)], "xyz"[i % 3])
        for i, both in enumerate(zip(right.tolist(), said.tolist(), strict=True))
    ]
    start = time.process_time()
    scores = evaluation(rows, ks=[1, 4, 16]).scores
    assert time.process_time() - start < 10  # 1 s on an idle machine
    assert scores["pass@1"].mean == pytest.approx(right.mean())
    assert scores["pass@16"].mean == pytest.approx(right.any(axis=1).mean())
