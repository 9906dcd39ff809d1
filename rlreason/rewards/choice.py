"""Is the right one of several options chosen? Reads letters, and the options' own texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from rlreason.rewards.answer import ANSWER, boxes, final, without_echo
from rlreason.types import Task

LETTERS = "ABCDEFGHIJ"
LONGEST = 1000  # characters of a statement
WRAPPED = re.compile(r"\\(?:text\w*|math\w*|mbox)\s*\{([^{}]*)\}")
MARKS = re.compile(r"[*_`$\"“”]|\\[()\[\]]")
LABEL = re.compile(r"(?i:option|choice|answer)?\s*(?:\(([A-Ja-j])\)|([A-J])(?![A-Za-z']))\s*(?:[.:)]\s*(.*))?", re.DOTALL)
LETTER = re.compile(
    r"\(([A-Ja-j])\)|(?<![\w\\'-])([A-J])(?![\w'-])(?!\s+(?!and\b|or\b|is\b|are\b|because\b|since\b|as\b)[a-z])"
)
HEAD = re.compile(r"(?i)\b(?:correct|right|best)\s+(?:option|choice)\b(?:\s+is\b|\s*:)[\s:]*")
CUT = re.compile(r"\n|\b(?:because|since|as)\b|[.;]\s")
NOT = re.compile(r"\b(?:not|neither|nor|except|unlike)\b|n't\b")


def choice(task: Task, text: str) -> float | None:
    """1 if the last statement of a text chooses the option that `task.answer` names, else 0.

    `task.answer` is a letter from A to J, or, where `task.info["choices"]` has the options (a list, or a mapping by
    letter), the text of one, or the number of one, from 0 (MMLU). `None` if it is none of these.

    Statements: the last \\\\boxed{…}, what is between <answer> tags, what follows the last `answer is` or `answer:`, or
    a last line that is nothing but an option. One that names two different letters chooses none; a letter in a word
    is none, nor is an article (A cat) or a pronoun (I think).
    """
    options = _options((task.info or {}).get("choices"))
    truth = _truth(task.answer, options)
    if truth is None:
        return None
    return float(_chosen(without_echo(text, task.prompt), options) == truth)


def _options(given: object) -> dict[str, str]:
    """Letter -> text, as `_plain` has it."""
    if isinstance(given, Mapping):
        return {str(letter).strip().upper(): _plain(str(text)) for letter, text in given.items()}
    if isinstance(given, list | tuple):
        return {letter: _plain(str(text)) for letter, text in zip(LETTERS, given, strict=False)}
    return {}


def _truth(answer: str | None, options: dict[str, str]) -> str | None:
    said = _plain(answer or "")
    named = [letter for letter, text in options.items() if text == said]
    if said and len(named) == 1 and said.upper() not in options:
        return named[0]
    label = LABEL.fullmatch(MARKS.sub("", (answer or "").strip().upper() if len(said) == 1 else (answer or "").strip()))
    letter = (label[1] or label[2]).upper() if label else ""
    if letter and (not options or letter in options):
        return letter
    if said.isdigit() and len(said) < 3 and int(said) < len(options):
        return [*options][int(said)]
    return None


def _chosen(text: str, options: dict[str, str]) -> str | None:
    region = final(text).partition("<think>")[0]
    found = boxes(region)
    if found is None:
        return None
    if found:
        return _letter(found[-1][1], options, alone=True)
    if "</answer>" in text.rpartition("</think>")[2] and (letter := _letter(region, options, alone=True)):
        return letter
    region = region[-5 * LONGEST :].rstrip()
    heads = [match.end() for pattern in (ANSWER, HEAD) for match in pattern.finditer(region)]
    if heads:
        said = region[max(heads) :]
        whole = said.partition("\n")[0]
        exactly = _exactly(whole, options)
        return _letter(CUT.split(said, maxsplit=1)[0], options) if exactly is None else exactly
    return _exactly(region.rpartition("\n")[2], options)


def _exactly(text: str, options: dict[str, str]) -> str | None:
    """The letter of a text that is an option and nothing else: C, (C), C. Paris, Paris. "" if C is not Paris."""
    text = MARKS.sub("", WRAPPED.sub(r"\1", text)).strip()[:LONGEST]
    said = _plain(text)
    label = LABEL.fullmatch(text.rstrip(" .,;:"))
    letter = (label[1] or label[2]).upper() if label else ""
    if label and (not options or letter in options):
        rest = _plain(label[3] or "")
        if not rest or options.get(letter) == rest:
            return letter
        if options:
            return "" if rest in options.values() else None
        return None if LETTER.search(label[3]) or re.match(r"(?:and|or)\b|[,/&]", rest) else letter
    named = [letter for letter, option in options.items() if option == said]
    return named[0] if len(named) == 1 else None


def _letter(text: str, options: dict[str, str], alone: bool = False) -> str | None:
    """The one letter that a statement names. `alone`: it may be a small letter, if it is all there is."""
    if (exactly := _exactly(text, options)) is not None:
        return exactly
    text = MARKS.sub("", WRAPPED.sub(r"\1", text)).strip()[:LONGEST]
    if alone and len(text) == 1 and text.upper() in (options or LETTERS):
        return text.upper()
    if NOT.search(text):
        return None
    letters = {(match[1] or match[2]).upper() for match in LETTER.finditer(text)}
    if len(letters) != 1:
        return None
    letter = letters.pop()
    others = [option for other, option in options.items() if other != letter and len(option) > 2]
    if options and (letter not in options or any(_plain(text).endswith(f" {option}") for option in others)):
        return None  # C, Berlin, where Berlin is B
    return letter


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    text = MARKS.sub("", WRAPPED.sub(r"\1", text[: 2 * LONGEST]))
    return " ".join(text.casefold().split()).strip(" .,;:")
