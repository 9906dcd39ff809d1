"""Is the answer right? Compares text with `task.answer`; a task without an answer cannot be judged."""

from __future__ import annotations

import re
from fractions import Fraction

from rlreason.types import Task

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?|[-+]?\.\d+")


def final(text: str) -> str:
    """The part of a text that is its answer.

    What stands between the last <answer> and its </answer>; else what follows the last </think>; else all of it.
    An <answer> that is never closed is no answer: a truncated text must not be right by accident.
    """
    if "<answer>" in text:
        inside, closed, _ = text.rpartition("<answer>")[2].partition("</answer>")
        return inside.strip() if closed else ""
    return text.rpartition("</think>")[2].strip()


def exact(task: Task, text: str) -> float | None:
    """1 if the final answer is `task.answer`, white space at the ends aside."""
    return None if task.answer is None else float(final(text) == task.answer.strip())


def numeric(task: Task, text: str) -> float | None:
    """1 if the last number of the final answer equals the last number of `task.answer`: 1,000.50 = 1000.5 = 2001/2.

    Fractions are compared exactly. `None` if the task's own answer holds no number.
    """
    truth = _last_number(task.answer or "")
    if truth is None:
        return None
    return float(_last_number(final(text)) == truth)


def _last_number(text: str) -> Fraction | None:
    found = NUMBER.findall(text[-2000:])  # a hostile answer may be long; an answer that is a number is not
    if not found or len(found[-1]) > 100:
        return None
    try:
        return Fraction(found[-1].replace(",", ""))
    except ZeroDivisionError:
        return None
