"""Where in a text its answer stands, and two plain ways to compare it. Knows nothing of mathematics beyond numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from rlreason.types import Prompt, Task

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?|[-+]?\.\d+")

LONGEST = 5000  # characters of a box: what is longer is no answer, and is not read
ECHO = 20  # characters: a shorter prompt is left in the text, since it may be the answer itself
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\(?:boxed|fbox)\s*\d+|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
DIGITS = re.compile(r"\d+")
BOX = re.compile(r"\\(?:boxed|fbox)\s*[{\d]")
ANSWER = re.compile(r"(?i)\banswers?\b[^\n.]{0,60}?(?:\bis\b|\bare\b|:|=)[\s*:=]*")
SENTENCE = re.compile(r"\.(?:\s|\*|$)|\n|\b(?:because|since)\b|,?\s(?:so|which|where|as)\b")
SPAN = r"(?:\$\$?(?:[^$\\]|\\.)+\$\$?|\\\([^\n]{1,500}?\\\)|\\\[[^\n]{1,500}?\\\])"
SPANS = re.compile(rf"{SPAN}(?:\s*,?\s*(?:and|or)?\s*{SPAN})*")
VALUE = re.compile(r"-?\\[dt]?frac\{\d+\}\{\d+\}|[-+]?(?:\d+ \d+/\d+|\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?\s*(?:\\?%)?")
NAMES = re.compile(r"\\(?:begin|end|text\w*|mathrm|mbox|operatorname)\s*\{[^{}]*\}")  # words that are part of a formula
QUANTITY = re.compile(rf"\$?(?:{VALUE.pattern})[A-Za-z /]*\.?")  # 5 million is not 5
WORD = re.compile(r"(?<![\\A-Za-z])(?!sqrt|sin|cos|tan|log|ln\b|lg\b|exp|and\b|or\b)[A-Za-z]{2,}")
DENIED = re.compile(r"(?i)(?:[,;]\s+(?:and |but )?|(?<=[\d$])\s+)not\s+(?=[-+.\d$\\])")  # of "5, not 6" the 5 is stated
CLAUSE = re.compile(r"[,;:]\s")
DOUBT = re.compile(r"(?i)\b(?:not|cannot|never|n?either|between|n?or)\b|n['’]t\b")


def final(text: str) -> str:
    """The part of a text that is its answer: what follows the last </think>, and of that what stands between the last
    <answer> and its </answer>, if there is an <answer>.

    An <answer> that is never closed is no answer: a truncated text must not be right by accident.
    """
    after = text.rpartition("</think>")[2]
    if "<answer>" in after:
        inside, closed, _ = after.rpartition("<answer>")[2].partition("</answer>")
        return inside.strip() if closed else ""
    return after.strip()


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


def without_echo(text: str, prompt: Prompt) -> str:
    """The text without verbatim repetitions of the prompt, or of a system or user message of it.

    An instruction or an example in the prompt may hold a \\boxed{…} or an <answer>, and repeating it answers nothing.
    """
    told = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] in ("system", "user")]
    for part in sorted((p.strip() for p in told), key=len, reverse=True):
        if len(part) >= ECHO:
            text = text.replace(part, " ")
    return text


def boxes(text: str) -> list[tuple[str, str]] | None:
    """The \\boxed{…} and \\fbox{…} around the last one of a text, first to last: (what stands before it since the box
    before, its content). Braces have to balance; a box within a box is part of that; an empty one is none.

    `None` if the last one is never closed: the text was cut off, and an earlier box was not its last word. Only the
    surroundings of the last box are read, so that the time does not grow with the text.
    """
    last = len(text)
    for _ in range(20):  # a \\boxed that holds nothing is only spoken of
        last = max(text.rfind("\\boxed", 0, last), text.rfind("\\fbox", 0, last))
        if last < 0 or BOX.match(text, last):
            break
    if last < 0:
        return []
    start = max(0, last - LONGEST)
    text = text[start : last + LONGEST]
    closed: list[tuple[int, int, str]] = []  # where it begins and ends, its content
    opened: list[tuple[int, int]] = []  # of every brace that is open: where its box begins, or -1, and where its content
    for match in BRACES.finditer(text):
        token, end = match[0], match.end()
        if token in ("\\\\", "\\{", "\\}"):
            continue
        if token.endswith("{"):
            opened.append((match.start() if len(token) > 1 else -1, end))
        elif token != "}":  # \boxed 5
            closed.append((match.start(), end, DIGITS.findall(token)[0]))
        elif opened:
            begin, content = opened.pop()
            if begin >= 0:
                while closed and closed[-1][0] > begin:
                    closed.pop()
                closed.append((begin, end, text[content : end - 1].strip()))
    if not closed or closed[-1][1] <= last - start:
        return None
    ends = [0, *(end for _, end, content in closed if content)]
    full = [(begin, content) for begin, _, content in closed if content]
    return [(text[before:begin], content) for before, (begin, content) in zip(ends, full, strict=False)]


def stated(text: str, several: bool = False, truncated: bool = False) -> list[str]:
    """The final answer that a text states, as it stands there; and, if words stand around it, without them. Or nothing.

    Within `final(text)`, the first of these that it has:

    1. its last \\boxed{…} (or \\fbox{…}, \\boxed 5); with `several`, which is for truths that are lists, all boxes of the
       last line that has one, as a list.
    2. what follows the last `####` on its line (GSM8K), or the last `answer is` or `answer:`, to the end of the sentence.
    3. its last line.

    Without the words, 2 and 3 are their formulas between $ or \\( \\) (the first of a sentence, the last of a line), else
    their last number; one that `not`, `between` or `or` precedes in its clause states nothing. A <think> that is never
    closed has thoughts behind it, not an answer. A `truncated` text has an answer only in a box or between <answer> tags:
    the last number of what was cut off is there by chance.
    """
    region = final(text)
    tagged = "</answer>" in text.rpartition("</think>")[2]
    region = region.partition("<think>")[0]
    found = boxes(region)
    if found is None:
        return []
    if found:
        answer: dict[str, None] = {}
        for between, content in reversed(found):
            answer[content] = None
            if not several or "\n" in between:
                break
        return [", ".join(reversed(answer))]
    if truncated and not tagged:
        return []
    region = region[-LONGEST:].strip()
    heads = list(ANSWER.finditer(region))
    if "####" in region:
        said = region.rpartition("####")[2].strip().partition("\n")[0].strip()
        return _readings(said, -1)
    if heads and (said := SENTENCE.split(region[heads[-1].end() :], maxsplit=1)[0].strip(" *`_")):
        return _readings(said, 0)
    line = region.rpartition("\n")[2].strip()[-1000:]
    return _readings(line, -1)


def _readings(said: str, which: int) -> list[str]:
    """What is said, and if words stand around it, the formula (the first or last, as `which` says) or last number in it."""
    if not WORD.search(NAMES.sub("", said)) or QUANTITY.fullmatch(said):
        return [said] if said else []
    meant = DENIED.split(said, maxsplit=1)[0]
    found = list(SPANS.finditer(meant))[which:][:1] or list(VALUE.finditer(meant))[-1:]
    stands = [match for match in found if not DOUBT.search(CLAUSE.split(meant[: match.start()])[-1])]
    return [said, *(match[0].strip().rstrip(",") for match in stands)]


def _last_number(text: str) -> Fraction | None:
    found = NUMBER.findall(text[-2000:])  # a hostile answer may be long; an answer that is a number is not
    if not found or len(found[-1]) > 100:
        return None
    try:
        return Fraction(found[-1].replace(",", ""))
    except ZeroDivisionError:
        return None
