"""Does the answer have the form that was asked for?"""

from __future__ import annotations

import re

from rlreason.types import Task

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SHAPE = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


def format(task: Task, text: str) -> float:
    """1 for `<think> … </think> <answer> … </answer>` (DeepSeek-R1, 2501.12948): each tag once, in this order,
    nothing but white space outside them."""
    return float(all(text.count(tag) == 1 for tag in TAGS) and SHAPE.fullmatch(text) is not None)
