"""How answers are written: one spelling for many, and taking them apart. Knows nothing of what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

SPELLING = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "π": r"\pi ",
        "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "≈": r"\approx ", "°": r"^\circ ", "²": "^2",
        "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "λ": r"\lambda ", "，": ",", "（": "(", "）": ")", "。": ".", "：": ":", "’": "'", "\u00a0": " ",
        "\u202f": " ", "€": "", "£": "", "¥": "", "₹": "",
    }
    | {chr(c): " " for c in range(32)}
    | {chr(c): "" for c in (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xAD, 0xFEFF)}
)  # fmt: skip
FUNCTION = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|sqrt|log|ln|lg|exp|pi|infty"


def _joined(match: re.Match[str]) -> str:
    return match[0].replace(" ", "")


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} is 1/6: (16 - 1) / 90."""
    start, period = match[1] + match[2], match[3]
    numerator = int(start + period) - int(start or "0")
    return f"\\frac{{{numerator}}}{{{10 ** len(match[2]) * (10 ** len(period) - 1)}}}"


PAIRS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [  # what is written so, is spelt so
    (r"\\\\\s*\[[^\]\\]{0,8}\]", r"\\\\"),  # a line break of a matrix, with its height
    (r"(?<=\d)(?:(?:\{,\}|,?\\[,!;: ]|~)\s*)+(?=\d{3}(?!\d))", ""),  # 1{,}000
    (r"(?<![\d ])\d{1,3}(?: \d{3})+(?![\d ])", _joined),
    (r"(?<!\\)\\[()\[\]]|\\?\$", " "),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
    (r"\\(?:displaystyle|textstyle|quad|qquad|limits)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|~", " "),
    (r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|mathcal|vec)\s*\{([^{}]*)\}", r"\1"),
    (r"\\math(?:rm)?\s*\{\s*([A-Za-z])\s*\}", r"\1"),
    (r"\\(?:text\w*|mathrm|mbox|operatorname\*?)\s*\{\s*(and|or)\s*\}", r" \1 "),
    (rf"\\(?:text\w*|mathrm|mbox|operatorname\*?)\s*\{{\s*({FUNCTION})\s*\}}", r"\\\1 "),
    (r"\\(?:text\w*|mathrm|mbox|operatorname\*?)\s*\{", r"\\text{"),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"\\leq(?:slant)?(?![a-z])|<=|\\le(?![a-z])", r"\\le "),
    (r"\\geq(?:slant)?(?![a-z])|>=|\\ge(?![a-z])", r"\\ge "),
    (r"\\neq?(?![a-z])|!=", r"\\ne "),
    (r"\\lt(?![a-z])", "<"),
    (r"\\gt(?![a-z])", ">"),
    (r"\\lbrace", r"\\{"),
    (r"\\rbrace", r"\\}"),
    (r"\\[lr]?vert(?![a-z])|\\mid(?![a-z])", "|"),
    (r"\\(?:lor|vee)(?![a-z])", " or "),
    (r"\\(?:varnothing|emptyset)|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\(?:infin|infinity)(?![a-z])", r"\\infty "),
    (r"\\degree(?![a-z])|\^\s*(?:\{\s*\^?\\circ\s*\}|\^?\\circ(?![a-z]))|\\circ(?![a-z])\s*$", "°"),
    (r"°\s+(?=[CF]$)", "°"),
    (r"\\%|\\text\{\s*(?:percent|%)\s*\}|\bpercent\b", "%"),
    (r"(?<=\S)\*\*(?=\S)", "^"),
    (r"==+", "="),
    (r"\\approx|\\simeq", "=="),
    (rf"(?<![\\A-Za-z])({FUNCTION})(?![A-Za-z])", r"\\\1"),
    (r"^\s*[a-zA-Z]\s*\\in(?![a-z])", ""),
    (r"\\mathbb\s*\{?\s*R\s*\}?", r"(-\\infty, \\infty)"),
    (r"^(-?\d+\.?\d*)[eE]([-+]?\d+)$", r"\1\\cdot 10^{\2}"),
    (r"(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d{1,20})\}", _repeating),
    (r"\+\s*\\infty", r"\\infty"),
]
REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in PAIRS]
EDGES, END = " *`_\"'", " .,;:*`_\"'"
UNITS = re.compile(
    "[cmkd]?m|ft|in|yd|mi|k?g|mg|lbs?|oz|m?s|hr?s?|min|sec|[mk]ph|kmh|m[lL]|[LNJWVCF]|Hz|sq|cu|[ap]m|USD|°[CF]|k?m/[hs]"
)
UNIT = re.compile(r"(.*(?:[\d})!]|\\pi|\S(?=\s*\\text\{\s*(?:square|cubic)\b)))(\s*)\\text\{[^{}]*\}(?:\s*\^\s*\{?-?\d\}?)?|"
                  r"(.*(?:[\d})]|\\pi(?![A-Za-z])))(\s*)([A-Za-z°][A-Za-z/]*)([A-Za-z/. ]*)"
                  r"(?:\^\{?[23]\}?)?")  # fmt: skip
NO_UNIT = re.compile(r"(?i)\b(?:or|and|not|more|less|than|minus|plus|times|over|squared|cubed|factorial|half|mod)\b")
SCALES = {"hundred": "00", "thousand": "000", "million": "000000", "billion": "000000000", "trillion": "000000000000"}
BRACKET = re.compile(r"\\[{}]|[()\[\]{}]|[,;]|\s(?:and|or)\s|\\cup(?![a-z])")
MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
RELATION = re.compile(r"(<|>|\\[lg]e(?![a-z]))\s*")
ANGLE = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)(?![a-z])")
BUILDER = re.compile(r"\\\{\s*([a-zA-Z])\s*(?:\\in\s*\(-\\infty, \\infty\)\s*)?[|:](.*)\\\}")
VARIABLE = re.compile(r"[a-zA-Z]|\\[a-z]+")


class Parts(NamedTuple):
    """What an answer consists of."""

    kind: str  # list, set, union, matrix 2x3, the brackets of a tuple or an interval such as [), or nothing: it is one
    elements: list[str]
    text: str

    @property
    def unordered(self) -> bool:
        return self.kind in ("list", "set", "union")


@lru_cache(maxsize=16384)
def normalise(text: str) -> str:
    """The same answer in the one spelling that the rest of the maths reward reads."""
    text = text.translate(SPELLING).lstrip(EDGES).rstrip(END)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text).lstrip(EDGES).rstrip(END)
    while text[:1] in ("{", "(") and text[-1:] in ("}", ")") and (inner := _inside(text)) is not None:
        text = inner.strip()
    return text.removeprefix("+").strip()


def _inside(text: str) -> str | None:
    """What stands in the braces or parentheses around the whole text, if it is one thing."""
    found = _cuts(text)
    return text[1:-1] if found[0] == len(text) and not found[2] else None


def _cuts(text: str) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
    """Where the first bracket closes; the separators outside of brackets; those directly in the first; the outer \\cup."""
    depth, closes = 0, -1
    outer: list[tuple[int, int]] = []
    inner: list[tuple[int, int]] = []
    unions: list[tuple[int, int]] = []
    for match in BRACKET.finditer(text):
        token = match[0]
        if token in ("(", "[", "{", "\\{"):
            depth += 1
        elif token in (")", "]", "}", "\\}"):
            depth -= 1
            if depth == 0 and closes < 0:
                closes = match.end()
        elif token == "\\cup":
            unions += [match.span()] * (depth == 0)
        elif depth == 0:
            outer.append(match.span())
        elif depth == 1 and closes < 0:
            inner.append(match.span())
    return closes, outer, inner, unions


def _split(text: str, cuts: list[tuple[int, int]]) -> list[str]:
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    pieces = [text[a:b].strip() for a, b in zip(starts, ends, strict=True)]
    return [re.sub(r"^(?:and|or)\s", "", piece).strip() for piece in pieces if piece not in ("", "and", "or")]


@lru_cache(maxsize=16384)
def parts(text: str) -> Parts:
    """A normalised answer, taken apart: `1, 2`, `x = 1 or x = 2`, `1 \\pm y` (lists), `\\{1, 2\\}`, `(1, 2]`, a matrix,
    A \\cup B."""
    if (matrix := MATRIX.fullmatch(text)) is not None:
        rows = [[cell.strip() for cell in row.split("&")] for row in matrix[2].split("\\\\") if row.strip()]
        if rows and len({len(row) for row in rows}) == 1:
            return Parts(f"matrix {len(rows)}x{len(rows[0])}", [cell for row in rows for cell in row], text)
    closes, outer, inner, unions = _cuts(text)
    if unions:
        return Parts("union", _split(text, unions), text)
    if outer:
        pieces = _split(text, outer)
        signed = [s for piece in pieces for s in _signs(piece)]
        return Parts("list" if len(signed) > 1 else "", signed, text)
    if closes == len(text):
        if text.startswith("\\{"):
            cuts = [(a - 2, b - 2) for a, b in inner]
            return Parts("set", [s for piece in _split(text[2:-2], cuts) for s in _signs(piece)], text)
        if text[0] in "([" and inner:
            return Parts(text[0] + text[-1], _split(text[1:-1], [(a - 1, b - 1) for a, b in inner]), text)
    signed = _signs(text)
    return Parts("list" if len(signed) > 1 else "", signed, text)


def _signs(text: str) -> list[str]:
    if "\\pm" not in text:
        return [text]
    return [text.replace("\\pm", sign).strip().removeprefix("+").strip() for sign in ("+", "-")]


def plain(text: str) -> str | None:
    """The words of an answer that is words (Evelyn, \\text{no}, 北京), in lower case; `None` if it is a formula."""
    inner = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    if (
        inner is None
        and text.replace("°", "").isascii()
        and not (WORDS.fullmatch(text) and re.search(r"[A-Za-z]{4}|^(?i:yes|no|odd)$", text))
    ):
        return None
    words = " ".join((inner[1] if inner else text).casefold().replace(",", " , ").strip(END).split())
    return words[1:-1] if re.fullmatch(r"\(\w\)", words) else words


def unitless(text: str) -> tuple[str, bool]:
    """A quantity without its unit (5 \\text{ cm}, 5 apples, 90°), and whether that was per cent. 5 million is 5000000."""
    if text.endswith("%"):
        return text[:-1].strip(), True
    if not ANGLE.search(text):
        text = text.removesuffix("°").strip()
    match = UNIT.fullmatch(text)
    if match is None:
        return text, False
    if match[1] is not None:
        return match[1].strip(), False
    number, space, word, rest = match[3], match[4], match[5], match[6]
    if word.lower() in SCALES and re.fullmatch(r"[\d.]+", number):
        return f"{number}\\cdot 1{SCALES[word.lower()]}", False
    known = (UNITS.fullmatch(word) and (space or len(word) > 1)) or len(word) >= 4 or (len(word) > 1 and len(rest.split()) > 1)
    return (number.strip(), False) if known and not NO_UNIT.search(f"{word} {rest}") else (text, False)


def interval(text: str) -> tuple[str, str] | None:
    """(variable, interval) of an inequality: `1 < x \\le 2` is x in (1, 2], and `x < 1 or x > 2` the union of two.

    An interval or a union is one already, of no variable, and so is a set-builder: \\{x | x > 0\\}. `None` for anything else.
    """
    if (built := BUILDER.fullmatch(text)) is not None:
        found = interval(built[2].strip()) if built[2].lstrip()[:2] != "\\{" else None
        return ("", found[1]) if found and found[0] == built[1] else None
    if not RELATION.search(text):
        whole = parts(text)
        return ("", text) if whole.kind == "union" or whole.kind[:1] in ("(", "[") or text == "\\mathbb{R}" else None
    pieces = [_range(piece) for piece in text.split(" or ")]
    names = {piece[0] for piece in pieces if piece}
    if None in pieces or len(names) != 1:
        return None
    return names.pop(), " \\cup ".join(piece[1] for piece in pieces if piece)


def _range(text: str) -> tuple[str, str] | None:
    pieces = [piece.strip() for piece in RELATION.split(text)]
    if len(pieces) == 5 and VARIABLE.fullmatch(pieces[2]):
        if pieces[1] in (">", "\\ge"):
            pieces.reverse()
            pieces[1::2] = [{">": "<", "\\ge": "\\le"}.get(p, "") for p in pieces[1::2]]
        low, first, name, second, high = pieces
        if {first, second} <= {"<", "\\le"}:
            return name, f"{'(' if first == '<' else '['}{low}, {high}{')' if second == '<' else ']'}"
    if len(pieces) != 3:
        return None
    left, relation, right = pieces
    if not VARIABLE.fullmatch(left):
        left, right = right, left
        relation = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}[relation]
    if not VARIABLE.fullmatch(left) or "," in right:
        return None
    ranges = {
        "<": f"(-\\infty, {right})",
        "\\le": f"(-\\infty, {right}]",
        ">": f"({right}, \\infty)",
        "\\ge": f"[{right}, \\infty)",
    }
    return left, ranges[relation]
