"""Rewards, by example."""

from pathlib import Path

import pytest

from rlreason.rewards import REWARDS, find, weigh, wrong_options
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


@pytest.mark.parametrize(
    ("weights", "parts", "total"),
    [
        ({"exact": 1.0, "format": 0.1}, {"exact": 1.0, "format": 1.0}, 1.1),
        ({"exact": 1.0, "cosine": -0.5}, {"exact": 1.0, "cosine": 0.5}, 0.75),
        ({"exact": 1.0, "format": 0.1}, {"exact": None, "format": 1.0}, None),  # a partial sum would compare unlike things
        ({"exact": 1.0, "format": 0.0}, {"exact": 1.0, "format": None}, 1.0),  # what is only logged takes nothing away
        ({"format": 0.0}, {"format": None}, 0.0), ({}, {}, 0.0),
    ],
)  # fmt: skip
def test_a_reward_is_the_weighted_sum_of_its_parts(weights, parts, total):
    assert weigh(weights, parts) == (None if total is None else pytest.approx(total))


async def asked(task, text, *, model, length, seconds=1.0, names=()):
    """As an LLM judge might be: an option that it has to be told, a fact, and a default."""


def anything(task, text, **options):
    """Takes whatever it is given."""


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("exact", {}, ""), ("exact", {"timeout": 3}, ""), ("exact", {"timeout": 0.5}, ""),
        ("exact", {"timeout": 0}, "timeout: 0 is not a number of seconds above 0"),
        ("exact", {"timeout": "1m"}, "timeout: '1m' is not a number of seconds above 0"),
        ("exact", {"timeuot": 1}, "timeuot: is no option of exact"), ("exact", ["timeout"], "is not a mapping"),
        ("exakt", {}, "did you mean exact?"), ("nonesuch.reward", {}, "No module named 'nonesuch'"),
        ("soft_overlong", {"limit": 5}, "limit: is a fact about each answer"),
        ("soft_overlong", {"bufer": 5}, "did you mean buffer?"), ("soft_overlong", {"buffer": "x"}, "is not of the type int"),
        ("test_rewards.asked", {"model": "m", "seconds": 2, "names": [1], "timeout": 9}, ""),
        ("test_rewards.asked", {}, "test_rewards.asked has to be told its model"),
        ("test_rewards.asked", {"model": "m", "length": 3}, "length: is a fact about each answer"),
        ("judge", {"url": ["http://h"], "model": "m"}, "url: ['http://h'] is not of the type str"),
        ("test_rewards.asked", {"model": "m", "second": 2}, "did you mean seconds?"),
        ("test_rewards.anything", {"whatever": [1]}, ""), ("test_rewards.anything", {"truncated": True}, "is a fact"),
        ("test_rewards.NOTHING", {}, "NOTHING"),
    ],
)  # fmt: skip
def test_options_are_checked_against_the_function(name, options, told, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    problem = wrong_options(name, options)
    assert told in problem if told else problem == ""


NOTHING = 7


def test_every_built_in_reward_goes_by_its_name():
    assert set(REWARDS) == {
        "exact", "numeric", "math", "choice", "code", "gym", "judge", "format", "language", "cosine", "soft_overlong",
        "repetition", "readable", "helpful", "harmless", "scorer",
    }  # fmt: skip
    wanting = {name for name in REWARDS if wrong_options(name, {})}
    assert wanting == {"judge", "helpful", "harmless", "scorer"}, "which have to be told whom to ask"


def test_a_module_that_breaks_on_import_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("x = nonesuch")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("broken_rewards.mine")[1] == "broken_rewards.mine: NameError: name 'nonesuch' is not defined"


def test_rewards_by_import_path():
    assert find("rlreason.rewards.answer.exact")[0] is REWARDS["exact"]
    assert "nonesuch" in find("rlreason.nonesuch")[1]
    assert "nor of the form" in find("exakt")[1]
