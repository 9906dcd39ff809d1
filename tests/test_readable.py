"""Readability, by texts that people would put aside and texts that they would not."""

import time

import pytest

from rlreason.rewards.readable import readable
from rlreason.types import Task

TASK = Task("0", "Why?", "42")
GOOD = "<think>First I add 40 and 2.\n\nThat is 42, as `a + b` says.</think>\n<answer>42</answer>"
BLOCK = "Let me try it.\n```python\nprint(42)\n```\n"
TILDES = "Let me try it.\n  ~~~\nprint(42)\n  ~~~\n"
ROW = " ".join(f"w{i}" for i in range(10))  # ten words
LONG = "x" * 2000


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        (GOOD, {}, 1), ("42", {}, 1), ("It is 42.\n\n```python\nprint(42)\n```", {}, 1),
        # blocks of code: in the thought, not in the answer; spoken of inline they are none
        (f"<think>{BLOCK}</think>42", {}, 0), (f"{BLOCK}</think>42", {}, 0), (f"<think>{TILDES}</think>42", {}, 0),
        (f"<think>{BLOCK}</think>42", {"code": True}, 1), (f"<think>a</think>{BLOCK}", {}, 1),
        ("<think>a ~~~ b</think>42", {}, 1), (f"<think>{BLOCK}</think>a</think>42", {}, 0),
        # paragraphs: of 2000 characters at most, thought or answer
        (LONG, {}, 1), (LONG + "x", {}, 0), (LONG + "\n" + LONG, {}, 1), (f"<think>{LONG}</think>{LONG}", {}, 1),
        (f"<think>{LONG} </think>4", {}, 0), ("a b\nc", {"paragraph": 3}, 1), ("a b\nc", {"paragraph": 2}, 0),
        (LONG + "x", {"paragraph": 0}, 1),
        # repetition: of runs of ten words, ten rows of ten have 91, of which 10 are distinct
        (" ".join([ROW] * 10), {}, 0), (" ".join([ROW] * 10), {"repeated": 81 / 91}, 1),
        (" ".join([ROW] * 10), {"repeated": 0.89}, 0), (" ".join([ROW] * 10), {"repeated": 1}, 1),
        (f"{ROW} a b c {ROW}", {}, 1),  # 1 of 14
        (f"{ROW} {ROW}", {}, 1), (f"{ROW} {ROW}", {"repeated": 0.0}, 0),  # 1 of 11
        # characters that nobody can read; a tab, an emoji and an accent are not among them
        ("4\x002", {}, 0), ("4\ufffd2", {}, 0), ("4\udc80", {}, 0), ("4\ue0002", {}, 0), ("4\x1b[0m2", {}, 0),
        ("4\ufffd2", {"strange": 1}, 1), ("4\ufffd\x00", {"strange": 1}, 0), ("4\t2\r\n👩\u200d🚀 é e\u0301 四", {}, 1),
        # an answer of nothing
        ("", {}, 0), (" \n", {}, 0), ("<think>a</think>\n", {}, 0), ("<think>a", {}, 0), ("", {"empty": True}, 1),
        ("<think>a</think><answer> </answer>", {}, 0), ("<think>a</think><answer>4", {}, 0), ("<think>a</think>4", {}, 1),
        ("<think>a", {"empty": True}, 1), (f"<think>{BLOCK}", {"empty": True}, 0),
    ],
)  # fmt: skip
def test_readable(text, options, value):
    assert readable(TASK, text, **options) == value


@pytest.mark.parametrize("options", [{"paragraph": -1}, {"repeated": -0.1}, {"strange": -1}])
def test_limits_that_make_no_sense_are_told(options):
    with pytest.raises(ValueError, match="none may be below 0"):
        readable(TASK, GOOD, **options)


@pytest.mark.parametrize("text", ["a " * 500_000, "\n" * 1_000_000, " " * 1_000_000, "~~~ " * 250_000, "<think>" * 140_000])
def test_a_megabyte_takes_bounded_time(text):
    started = time.process_time()
    readable(TASK, text, paragraph=0, repeated=0.99)
    assert time.process_time() - started < 5  # seconds; below 1 on an idle machine
