"""Does the answer have the form that was asked for?"""

from __future__ import annotations

import re

from rlreason.types import Task

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SHAPE = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
THINK_SHAPE = re.compile(r"\s*<think>.*</think>\s*\S.*", re.DOTALL)


def format(task: Task, text: str, *, think_only: bool = False, opened: bool = False, partial: bool = False) -> float:
    """1 for `<think> … </think> <answer> … </answer>` (DeepSeek-R1, 2501.12948): each tag once, in this order,
    nothing but white space outside them.

    `think_only`: no <answer> tags are asked for; what follows </think> is the answer, and must not be empty.
    `opened`: the chat template ends every prompt with <think>, so the answer begins inside it.
    `partial`: half of the reward goes by the share of the tags that stand there exactly once, half by the whole form.
    """
    tags, shape = (TAGS[:2], THINK_SHAPE) if think_only else (TAGS, SHAPE)
    whole = "<think>" + text if opened else text
    once = [whole.count(tag) == 1 for tag in tags]
    right = all(once) and shape.fullmatch(whole) is not None  # counted first: so the match costs linear time
    return 0.5 * sum(once) / len(once) + 0.5 * right if partial else float(right)
