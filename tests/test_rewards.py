"""Rewards, by example."""

import pytest

from rlreason.rewards import REWARDS, find, judge
from rlreason.types import Task


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 1), (" 42\n", 1), ("42.", 0), ("", 0),
        ("<think>6*7=42</think><answer>42</answer>", 1), ("<think>42</think><answer>43</answer>", 0),
        ("<think>…</think> 42", 1),
        ("<answer>41</answer><answer>42</answer>", 1),  # the last one counts
        ("<answer>42", 0),  # cut off: right by accident is not right
    ],
)  # fmt: skip
def test_exact(text, value):
    assert REWARDS["exact"](Task("0", "", "42"), text) == value


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        ("1000.5", "it is $1,000.50", 1), ("1000.5", "2001/2", 1), ("3", "first 3, then 4", 0), ("-3", "x = -3", 1),
        ("#### 72", "so 72 apples.", 1), ("0.5", ".5", 1), ("5", "no idea", 0), ("5", "1/0", 0),
        ("5", "<answer>5</answer> 6", 1), ("5", "9" * 10_000, 0), ("5", "\x00\ud800 5", 1),
        ("apples", "5", None),
    ],
)  # fmt: skip
def test_numeric(answer, text, value):
    assert REWARDS["numeric"](Task("0", "", answer), text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1), ("<think>a\n</think>\n <answer>b</answer>\n", 1),
        ("<think></think><answer></answer>", 1),
        ("x<think>a</think><answer>b</answer>", 0), ("<think>a</think>x<answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer>x", 0), ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think><answer>b", 0), ("</think><think><answer></answer>", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0), ("", 0),
    ],
)  # fmt: skip
def test_format(text, value):
    assert REWARDS["format"](Task("0", "", "b"), text) == value


def test_a_reward_is_the_weighted_sum_of_its_parts():
    total, parts = judge(Task("0", "", "b"), "<think>a</think><answer>b</answer>", {"exact": 1.0, "format": 0.1})
    assert total == pytest.approx(1.1)
    assert parts == {"exact": 1.0, "format": 1.0}


def test_a_task_may_name_its_own_rewards():
    assert judge(Task("0", "", "1.0", reward={"numeric": 2.0}), "1", {"exact": 1.0}) == (2.0, {"numeric": 1.0})


def test_one_part_that_cannot_be_judged_makes_the_whole_unjudged():
    total, parts = judge(Task("0", "", None), "x", {"exact": 1.0, "format": 0.1})
    assert total is None
    assert parts == {"exact": None, "format": 0.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1"])
def test_what_is_no_number_is_told_with_function_and_task(value, monkeypatch):
    monkeypatch.setitem(REWARDS, "mine", lambda task, text: value)
    with pytest.raises(ValueError, match=r"the reward mine gave .* of task t7"):
        judge(Task("t7", "", ""), "x", {"mine": 1.0})


def test_rewards_by_import_path():
    assert find("rlreason.rewards.answer.exact")[0] is REWARDS["exact"]
    assert "nonesuch" in find("rlreason.nonesuch")[1]
    assert "nor of the form" in find("exakt")[1]
