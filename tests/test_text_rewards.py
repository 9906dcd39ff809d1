"""Length, repetition and form, by tables worked by hand."""

import random
import time

import pytest

from rlreason.rewards.form import format
from rlreason.rewards.length import cosine, soft_overlong
from rlreason.rewards.repetition import repetition
from rlreason.types import Task

TASK = Task("0", "", "42")


# cos(π·length/limit) is 1, √½, 0, -√½ and -1 at 0, 25, 50, 75 and 100 of 100; r = long + (short - long)·(1 + cos)/2.
@pytest.mark.parametrize(
    ("text", "length", "truncated", "value"),
    [
        ("42", 0, False, 1.0), ("42", 25, False, 0.926777), ("42", 50, False, 0.75), ("42", 75, False, 0.573223),
        ("42", 100, False, 0.5),
        ("41", 0, False, -1.0), ("41", 25, False, -0.926777), ("41", 50, False, -0.75), ("41", 100, False, -0.5),
        ("42", 100, True, -1.0), ("41", 100, True, -1.0),  # cut off: over the limit, right or wrong
    ],
)  # fmt: skip
def test_cosine(text, length, truncated, value):
    assert cosine(TASK, text, length=length, limit=100, truncated=truncated, of="exact") == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "length", "truncated", "value"),
    [("42", 0, False, 2), ("42", 50, False, 1.5), ("41", 0, False, -10), ("41", 50, False, -5), ("41", 100, False, 0),
     ("41", 100, True, -10)],
)  # fmt: skip
def test_cosine_with_the_values_of_its_paper(text, length, truncated, value):
    paper = {"correct_short": 2, "correct_long": 1, "wrong_short": -10, "wrong_long": 0, "exceeded": -10}
    found = cosine(TASK, text, length=length, limit=100, truncated=truncated, of="numeric", **paper)
    assert found == pytest.approx(value)


def test_cosine_goes_by_the_reward_that_it_is_told_and_cannot_judge_where_that_cannot():
    facts = {"length": 0, "limit": 10, "truncated": False}
    assert cosine(TASK, "42.0", of="numeric", **facts) == 1.0
    assert cosine(TASK, "42.0", of="exact", **facts) == -1.0
    assert cosine(Task("0", "", None), "42", of="exact", **facts) is None
    assert cosine(TASK, "42", of="rlreason.rewards.answer.exact", **facts) == 1.0
    assert cosine(TASK, "$\\frac{84}{2}$", of="rlreason.rewards.maths.math", **facts) == 1.0
    longer = {"length": 5, "limit": 10, "truncated": False, "of": "rlreason.rewards.length.soft_overlong"}
    assert cosine(TASK, "", **longer) == -0.75, "a reward that asks for facts is told them, and 0 is not right"


@pytest.mark.parametrize(
    ("of", "told"),
    [("exakt", "'exakt' is not one of"), ("rlreason.rewards.judge.judge", "cannot tell by itself, and at once"),
     ("rlreason.rewards.nonesuch.exact", "nonesuch")],
)  # fmt: skip
def test_cosine_tells_a_reward_that_it_cannot_go_by(of, told):
    with pytest.raises(ValueError, match=told):
        cosine(TASK, "42", length=0, limit=10, truncated=False, of=of)


@pytest.mark.parametrize(
    ("length", "limit", "buffer", "value"),
    [
        (0, 20480, 4096, 0), (16384, 20480, 4096, 0), (17408, 20480, 4096, -0.25), (18432, 20480, 4096, -0.5),
        (20479, 20480, 4096, -4095 / 4096), (20480, 20480, 4096, -1), (20481, 20480, 4096, -1),
        (18432, 20480, 0, -0.5),  # a fifth of the limit: the same 4,096
        (80, 100, 0, 0), (85, 100, 0, -0.25), (100, 100, 0, -1),
        (1, 4, 4, -0.25), (1, 1, 0, -1), (0, 1, 0, 0),
    ],
)  # fmt: skip
def test_soft_overlong(length, limit, buffer, value):
    assert soft_overlong(TASK, "", length=length, limit=limit, buffer=buffer) == pytest.approx(value)


@pytest.mark.parametrize("buffer", [-1, 101])
def test_soft_overlong_tells_a_buffer_that_does_not_fit(buffer):
    with pytest.raises(ValueError, match=f"buffer: {buffer} is not between 0 and .* 100"):
        soft_overlong(TASK, "", length=1, limit=100, buffer=buffer)


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ("a b c d e", {}, 0),  # abc bcd cde
        ("a a a a a", {}, -2 / 3),  # aaa three times, one of them distinct
        ("a b a b a b", {}, -0.5),  # aba bab aba bab
        ("A b a B a b", {}, -0.5), ("a  b\na b\ta b ", {}, -0.5),  # neither case nor white space matters
        ("a b a b a b", {"n": 2}, -0.6),  # ab ba ab ba ab
        ("a b a b a b", {"n": 2, "penalty": 0.5}, -0.3), ("a b a b a b", {"penalty": 0}, 0),
        ("a b b", {"n": 1}, -1 / 3),
        ("", {}, 0), ("a a", {}, 0), ("a b c", {}, 0), (" \n ", {}, 0), ("a a a a a", {"n": 6}, 0),
        ("a b c d a b c d", {"n": 4}, -0.2),  # abcd bcda cdab dabc abcd
        ("a b c d e a b c d e", {"n": 5}, -1 / 6),  # abcde bcdea cdeab deabc eabcd abcde
        ("等等等等等", {}, -2 / 3), ("我们等等", {}, 0),  # 我们等 们等等
        ("あああ", {"n": 2}, -0.5), ("คคคค", {"n": 2}, -2 / 3), ("用 Python 用 Python", {"n": 2}, -1 / 3),
        ("ababab", {"characters": True, "n": 2}, -0.6), ("ab ab ab", {"characters": True, "n": 2}, -0.6),
        ("ababab", {"n": 1}, 0),  # one word
        ("\ud800 \x00 \ud800 \x00 \ud800", {}, -1 / 3),
    ],
)  # fmt: skip
def test_repetition(text, options, value):
    assert repetition(TASK, text, **options) == pytest.approx(value)


def test_repetition_counts_ngrams_exactly():
    rng = random.Random(0)
    for n in (1, 2, 3, 5, 8, 13, 40):
        units = [rng.choice("abc") for _ in range(300)]
        grams = [tuple(units[i : i + n]) for i in range(300 - n + 1)]
        expected = len(set(grams)) / len(grams) - 1
        assert repetition(TASK, " ".join(units), n=n) == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"n": 0}, {"penalty": -1.0}])
def test_repetition_tells_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match="n is at least 1 and the penalty at least 0"):
        repetition(TASK, "a", **options)


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ("<think>a</think>b", {"think_only": True}, 1), ("<think>a</think>\n b", {"think_only": True}, 1),
        ("<think>a</think>", {"think_only": True}, 0), ("<think>a</think>\n", {"think_only": True}, 0),
        ("x<think>a</think>b", {"think_only": True}, 0), ("<think>a</think><think>b</think>c", {"think_only": True}, 0),
        ("b", {"think_only": True}, 0),
        ("a</think><answer>b</answer>", {"opened": True}, 1), ("<think>a</think><answer>b</answer>", {"opened": True}, 0),
        ("a</think>b", {"opened": True, "think_only": True}, 1), ("a b", {"opened": True, "think_only": True}, 0),
        ("<think>a</think><answer>b</answer>", {"partial": True}, 1),
        ("x<think>a</think><answer>b</answer>", {"partial": True}, 0.5),  # 4 of 4 tags, not the form
        ("<think>a</think><answer>b", {"partial": True}, 0.375),  # 3 of 4
        ("<think>a</think><answer>b</answer><answer>", {"partial": True}, 0.375),  # one of them twice
        ("<answer></answer>", {"partial": True}, 0.25), ("", {"partial": True}, 0),
        ("a</think>", {"partial": True, "think_only": True}, 0.25), ("a</think>", {"partial": True, "opened": True}, 0.25),
    ],
)  # fmt: skip
def test_format_with_options(text, options, value):
    assert format(TASK, text, **options) == value


@pytest.mark.parametrize(
    "text",
    ["a " * 500_000, "等" * 1_000_000, "\\" * 1_000_000, "<think>" * 140_000, "</think> " * 110_000,
     "<think>a</think>" + " " * 1_000_000 + "<answer>b</answer>", "<think>" + "\n" * 1_000_000 + "</think><answer></answer>x"],
    ids=["words", "han", "one word", "opens", "closes", "gap", "inside"],
)  # fmt: skip
def test_a_megabyte_takes_bounded_time(text):
    started = time.process_time()
    for n in (3, 40):
        assert -1 <= repetition(TASK, text, n=n) <= 0
    assert -1 <= repetition(TASK, text, n=20, characters=True) <= 0
    assert format(TASK, text, partial=True) <= 1
    assert time.process_time() - started < 10  # seconds; some 2 on an idle machine
