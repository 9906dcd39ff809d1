"""Is the answer mathematically the same as `task.answer`? Decides cheaply what can be, and asks math-verify the rest."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

from rlreason.rewards.answer import boxes, stated, without_echo
from rlreason.rewards.maths.expression import TooLarge, Tree, Unreadable, read
from rlreason.rewards.maths.notation import RELATION, Parts, interval, normalise, parts, plain, unitless
from rlreason.rewards.maths.value import Undefined, constant, defined, proportional, same, within
from rlreason.types import Task

LONGEST = 2000  # characters of a truth; ten times a truth's and 500 more of an answer
ELEMENTS = 50  # of a list, set, tuple or matrix
DIGITS = 6  # significant ones, that a decimal needs to stand for a number that it rounds

THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])|\\[()\[\]]|\\?[{}]|[()\[\]]")
CAPITALS = re.compile(r"(?:\\text\{)?\s*([A-Z]{3,})\s*\}?")  # a name: of a triangle, an acronym, EVE
WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
BASED = re.compile(r"([0-9A-F]*\d)_\{?(\d+)\}?")
DECIMAL = re.compile(r"-?(\d*)\.(\d+)")
EQUALS = re.compile(r"(?<![<>!\\=])==?")  # ≈ is spelt ==
NAME = re.compile(r"(?:\\text\{[^{}]*\}|\\[a-z]+|[a-z]|[A-Za-z]{4,}|[A-Z]{1,3}|\\angle ?[A-Z]{1,3})(?:_\{?\w+\}?)?'*"
                  r"(?:\s*\(\s*\w\s*\))?|\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)")  # fmt: skip
COORDINATE = re.compile(r"[xyz]\s*=")
UNFINISHED = re.compile(r"\\(?:i*int|oint|sum|prod|lim|frac\s*\{\s*d\s*\}\s*\{\s*d\w*\s*\})(?![a-z])")
HEAVY = re.compile(  # what sympy could work on for very long: towers, high powers, large factorials, matrices, series
    r"\^[^{]?\^|\^\s*\{[^{}]*[\^!{(]|\^\s*\{?\s*\d\d|\d{3,}\s*!|[)}\]]\s*!|!\s*!|\d{40}"
    r"|\\binom\s*\{[^{}]*(?:\d{3}|[\\^!])|\\(?:i*int|oint|sum|prod|lim|[gG]amma|zeta)(?![a-z])|\\begin|\^\s*\("
)


def math(task: Task, text: str, *, truncated: bool = False) -> float | None:
    """1 if the final answer of a text (`answer.stated` says which that is) equals `task.answer` as mathematics, else 0.

    `None` if the task has no answer, or if the two cannot be compared within bounds. A text without an answer gets 0.
    """
    truth = _truth(task.answer or "")
    if not truth or len(truth) > LONGEST:
        return None
    several = all(parts(reading).unordered for reading in _readings(truth))
    answers = stated(without_echo(text, task.prompt), several=several, truncated=truncated)
    verdicts = [equal(truth, answer) for answer in answers if len(answer) <= 500 + 10 * len(truth)]
    if True in verdicts:
        return 1.0
    return None if None in verdicts[-1:] else 0.0


def _truth(text: str) -> str:
    """A data set's answer may be a whole solution, with the answer in a box (MATH) or after #### (GSM8K)."""
    found = boxes(text)
    return (found[-1][1] if found else text.rpartition("####")[2]).strip()


@lru_cache(maxsize=16384)
def equal(truth: str, answer: str) -> bool | None:
    """Whether two pieces of LaTeX or plain text mean the same. `None`: cannot be decided within bounds.

    Order counts in tuples, intervals and matrices, and not in sets, lists of solutions and unions. Units, currency and
    degree signs are left out; a percentage is its number, with the sign or as a value. A decimal of `DIGITS` digits or
    more also equals a number that it rounds correctly. 1,234 may be one number or two; (1,234) is two. Three or more
    capitals are a name, and not a product. An equation between numbers (2 + 3 = 5) has to hold.
    """
    if not normalise(truth):
        return None
    verdicts = {_same(a, b, 0) for a in _readings(truth) for b in _readings(answer)}
    return True if True in verdicts else None if None in verdicts else False


def _readings(text: str) -> set[str]:
    return {normalise(text), normalise(_joined(text))}


def _joined(text: str) -> str:
    """With 1,234 as 1234, but for what stands in brackets; the braces of a command (\\frac{1,234}{5}) are none."""
    opened: list[int] = []  # of every bracket that is open: how many real ones there are

    def written(match: re.Match[str]) -> str:
        token = match[0]
        if token[0].isdigit():
            return token if opened and opened[-1] else token.replace(",", "")
        if token in ("(", "[", "\\{", "{"):
            grouping = token == "{" and text[match.start() - 1 : match.start()] not in ("", " ", "$", "(", "[", ",")
            opened.append((opened[-1] if opened else 0) + (not grouping))
        elif token in (")", "]", "\\}", "}") and opened:
            opened.pop()
        return token

    return THOUSANDS.sub(written, text)


def _same(truth: str, answer: str, depth: int) -> bool | None:
    if _key(truth) == _key(answer):
        return True
    words = plain(truth)
    if words is not None:
        return words == (plain(answer) or plain(f"\\text{{{answer}}}"))
    if not answer or not answer.replace("°", "").isascii() or depth > 4:
        return False
    if UNFINISHED.search(answer) and not UNFINISHED.search(truth):
        return False  # what was to be worked out is handed back: no answer, though sympy would work it out
    if RELATION.search(truth) or RELATION.search(answer):
        return _relation(truth, answer, depth)
    ours, theirs = parts(truth), parts(answer)
    if max(len(ours.elements), len(theirs.elements)) > ELEMENTS:
        return None if len(ours.elements) > ELEMENTS else False
    left, right = _sides(ours), _sides(theirs)
    if len(left) > 1 or len(right) > 1:
        return _equation(left, right, "==" not in answer, depth)
    return _compound(ours, theirs, depth) if ours.kind or theirs.kind else _single(truth, answer)


def _sides(whole: Parts) -> list[str]:
    """Of an equation; anything else has one."""
    return [whole.text] if whole.kind else [side.strip() for side in EQUALS.split(whole.text)]


def _key(text: str) -> str:
    """A normal form in which equal texts are the same, whatever their spaces and needless braces."""
    text = re.sub(r"(\d)\s+(?=\d)|(\\[a-zA-Z]+)\s+(?=[A-Za-z])", r"\1\2~", text)  # 1 2 is not 12, nor \pi r \pir
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", re.sub(r"\s+", "", text))


def _relation(truth: str, answer: str, depth: int) -> bool | None:
    a, b = interval(truth), interval(answer)
    if a and b:
        return _same(a[1], b[1], depth + 1) if a[0] == b[0] or not (a[0] and b[0]) else False
    if not (a or RELATION.search(truth)) or not (b or RELATION.search(answer)):
        return False
    return _asked(truth, answer)


def _compound(truth: Parts, answer: Parts, depth: int) -> bool | None:
    """Compares lists, sets, tuples, intervals, matrices and unions, element by element."""
    ours, theirs = truth.elements, answer.elements
    if truth.kind[:1] == "(" and answer.kind == "list" and all(COORDINATE.match(element) for element in theirs):
        theirs = sorted(theirs)  # y = 2, x = 1 is (1, 2)
    if (truth.kind == answer.kind and not truth.unordered) or (truth.kind[:1] in ("(", "[") and answer.kind == "list"):
        return _in_order(ours, theirs, depth)
    if "union" in (truth.kind, answer.kind):
        if "list" in (truth.kind, answer.kind) or "" in (truth.kind, answer.kind):
            return False
        ours, theirs = (whole.elements if whole.kind == "union" else [whole.text] for whole in (truth, answer))
        verdict = _unordered(ours, theirs, depth)
        return _asked(truth.text, answer.text) if verdict is False and len(ours) != len(theirs) else verdict
    if "matrix" in truth.kind + answer.kind or truth.kind[:1] in ("(", "["):
        return False
    names = [sides[0].strip() if len(sides := EQUALS.split(element)) > 1 else "" for element in ours]
    if truth.kind == "list" and len(set(names)) > 1:  # x = 1, y = 2: which is which counts
        if all("=" in element for element in theirs):
            ours, theirs = sorted(ours), sorted(theirs)
        return _in_order(ours, theirs, depth)
    if answer.kind[:1] in ("(", "["):
        if truth.kind != "list":
            return False
        if any(parts(element).kind for element in ours):
            theirs = [answer.text]
    return _unordered(ours, theirs, depth)


def _in_order(ours: list[str], theirs: list[str], depth: int) -> bool | None:
    return len(ours) == len(theirs) and _all(_same(a, b, depth + 1) for a, b in zip(ours, theirs, strict=True))


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """False beats undecided, and undecided beats true."""
    undecided = False
    for verdict in verdicts:
        if verdict is False:
            return False
        undecided = undecided or verdict is None
    return None if undecided else True


def _unordered(ours: list[str], theirs: list[str], depth: int) -> bool | None:
    """Whether every element of each has its like in the other: as in a set, repeats do not count."""
    table = [[_same(a, b, depth + 1) for b in theirs] for a in ours]
    lines = [*table, *(list(column) for column in zip(*table, strict=True))]
    return _all(True if True in line else None if None in line else False for line in lines)


def _single(truth: str, answer: str) -> bool | None:
    if "\\infty" in (truth.lstrip("- "), answer.lstrip("- ")) or ":" in truth + answer:
        return False  # their keys differ; times and ratios are compared as text: 3:30 is not 4:40, though both are a tenth
    if (name := CAPITALS.fullmatch(truth)) and (other_name := CAPITALS.fullmatch(answer)):
        return name[1] == other_name[1]
    if BASED.fullmatch(truth) or BASED.fullmatch(answer):  # 2516_8: the base may be left out, but not another one
        based, other = (_key(text).split("_") for text in (truth, answer))
        return based[0] == other[0] and len(based) != len(other)
    (ours, percent), (theirs, given) = unitless(truth), unitless(answer)
    if _key(ours) == _key(theirs) or WORDS.search(theirs):
        return _key(ours) == _key(theirs)
    if WORDS.search(ours):
        return None
    try:
        a = read(ours)
    except Unreadable:
        return _asked(ours, theirs)
    except TooLarge:
        return None
    try:
        b = read(theirs)
        hundred: Tree = ("num", Fraction(100))
        if percent != given and same(("/", a, hundred) if percent else a, b if percent else ("/", b, hundred)):
            return True
        return same(a, b) or _rounded(ours, a, theirs, b)
    except Unreadable:
        return _asked(ours, theirs)
    except Undefined:
        return False if defined(a) else None
    except TooLarge:
        return None


def _rounded(truth: str, a: Tree, answer: str, b: Tree) -> bool:
    """Whether one is a decimal of many digits, and the other, which is none, rounds to it: 0.333333 and 1/3."""
    for text, other, tree in ((truth, answer, b), (answer, truth, a)):
        digits = DECIMAL.fullmatch(text)
        if digits and not DECIMAL.fullmatch(other) and len((digits[1] + digits[2]).lstrip("0")) >= DIGITS:
            return within(tree, Fraction(text), Fraction(1, 2 * 10 ** len(digits[2])))
    return False


def _holds(side: str, said: str) -> bool | None:
    """Whether side = said, for constants, holds or is a rounding. What has a variable or a unit only says of what it is."""
    if NAME.fullmatch(side):
        return True
    try:
        a, b = read(side), read(said)
        if not (constant(a) and constant(b)):
            return True
        digits = DECIMAL.fullmatch(said)
        return same(a, b) or bool(digits and within(a, Fraction(said), Fraction(1, 2 * 10 ** len(digits[2]))))
    except Unreadable:
        return True
    except Undefined:
        return False
    except TooLarge:
        return None


def _equation(truth: list[str], answer: list[str], exact: bool, depth: int) -> bool | None:
    """Equations, as their sides: the same if one is a multiple of the other. A name before an answer (x = 5) is left out
    where only one of the two has one. An `exact` answer, one without ≈, has to hold if it is of constants: 3 = 5 is no 5."""
    if len(truth) == 1:
        said = answer[0] if NAME.fullmatch(answer[-1]) and not NAME.fullmatch(answer[0]) else answer[-1]
        return _all((_same(truth[0], said, depth + 1), *(_holds(side, said) for side in answer if exact and side != said)))
    if len(answer) == 1:
        return bool(NAME.fullmatch(truth[0])) and _same(truth[-1], answer[0], depth + 1)
    if NAME.fullmatch(truth[0]) and _key(truth[0]) == _key(answer[0]) and _same(truth[-1], answer[-1], depth + 1):
        return True
    try:
        ours, theirs = (("-", read(sides[0]), read(sides[-1])) for sides in (truth, answer))
        return proportional(ours, theirs)
    except Unreadable:
        return _asked(" = ".join(truth), " = ".join(answer))
    except Undefined:
        return False
    except TooLarge:
        return None


def _asked(truth: str, answer: str) -> bool | None:
    """What math-verify says, to whom only short expressions go that cannot keep it busy.

    Its time-outs are switched off: they need the main thread's signals, and say "wrong". A worker that hangs is killed.
    """
    if max(len(truth), len(answer)) > 300 or HEAVY.search(truth) or HEAVY.search(answer) or answer.count("^") > 8:
        return None
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
    config = [LatexExtractionConfig(boxed_match_priority=-1)]
    try:
        ours, theirs = (
            parse(f"${t}$", config, "no_fallback", parsing_timeout=None, raise_on_error=True) for t in (truth, answer)
        )
        if not ours:
            return None
        return bool(theirs) and verify(ours, theirs, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    except MemoryError:
        raise  # the process is at its limit, and says so itself
    except Exception:  # sympy fails in every class there is; whether the answer is wrong is then unknown
        return None
