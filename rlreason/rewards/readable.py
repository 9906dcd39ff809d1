"""Can people read the answer, and the chain of thought before it? Which language it is in, language.py tells."""

from __future__ import annotations

import re

from rlreason.rewards.answer import final
from rlreason.rewards.judge import summary
from rlreason.rewards.repetition import repetition
from rlreason.types import Task

FENCE = re.compile(r"```|^[ \t]*~~~", re.MULTILINE)  # of a block of code in Markdown
TAG = re.compile(r"</?(?:think|answer)>")
# Control characters but for tab, newline and carriage return, halves of surrogate pairs, characters for private use,
# and U+FFFD, which stands for bytes that are no character.
STRANGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff]")
WORDS = 10  # in a row, said again: a turn of phrase is shorter


def readable(
    task: Task,
    text: str,
    *,
    code: bool = False,
    paragraph: int = 2000,
    repeated: float = 0.2,
    strange: int = 0,
    empty: bool = False,
) -> float:
    """1 if people can read it, else 0: what DeepSeek-R1's rejection sampling keeps, language aside (2501.12948, 2.3.3).

    The paper names its filters (mixed languages, long paragraphs, code blocks; for the cold start repetition too) and
    gives no numbers. Each option says what is let through:

    `code`: blocks of code in the chain of thought, which is what stands before </think>; in the answer they are welcome.
    `paragraph`: the longest line, in characters (0: any). 2,000 are some 350 English words, a whole printed page without
    a break; of a script without spaces that is three such pages, and 700 the like of it.
    `repeated`: the share of the runs of ten words that were said before, as `repetition` counts them with n=10 (1: any).
    MassiveText lets web pages repeat a tenth in runs of ten (2112.11446, table A1), and a thought that checks itself
    repeats more.
    `strange`: how many control, replacement and private-use characters: none is ever meant.
    `empty`: an answer of nothing, which one that is cut off in its chain of thought is as well.

    Raises `ValueError` for limits below 0.
    """
    if paragraph < 0 or repeated < 0 or strange < 0:
        raise ValueError(f"paragraph: {paragraph}, repeated: {repeated:g} and strange: {strange}, but none may be below 0")
    answer = summary(text)
    thought = text.removesuffix(answer)  # nothing, in a text without tags
    return float(
        (code or not FENCE.search(thought))
        and (not paragraph or max(map(len, TAG.sub("\n", text).splitlines()), default=0) <= paragraph)
        and (repeated >= 1 or -repetition(task, text, n=WORDS) <= repeated)
        and len(STRANGE.findall(text)) <= strange
        and (empty or final(answer) != "")
    )
