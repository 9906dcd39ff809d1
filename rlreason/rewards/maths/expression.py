"""Arithmetic in LaTeX or plain text, read into a tree. Every cost is bounded; knows no sympy."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

Tree = tuple[Any, ...]  # ("num", Fraction), ("var", name), ("call", function, Tree) or (operator, Tree, …)

TOKENS, NESTED = 400, 40  # of an expression at most
DIGITS = 2500  # of a number at most

TOKEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|[-+*/^_!(){}\[\]|°])")
GREEK = re.compile(r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|"
                   r"tau|(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega|ell)")  # fmt: skip
INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan", "sinh": "asinh", "cosh": "acosh", "tanh": "atanh"}
FUNCTIONS = {f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan")} | {
    name: name for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "sec", "csc", "cot", "ln", "log", "lg")
}
ANGLED = frozenset(("sin", "cos", "tan", "sec", "csc", "cot"))  # of an angle, which may be in degrees
DEGREE: Tree = ("/", ("var", "pi"), ("num", Fraction(180)))


class Unreadable(Exception):
    """Not an expression of this grammar."""


class TooLarge(Exception):
    """Neither read nor valued within bounds."""


@lru_cache(maxsize=4096)
def read(text: str) -> Tree:
    """The tree of an expression: + - * / ^ !, \\frac, \\sqrt[n], \\binom, |x|, the elementary functions, implicit products,
    mixed numbers, and degrees as the arguments of sine and its like. Letters are variables, but for e and i. Raises
    `Unreadable` or `TooLarge`."""
    return _Reader(text).whole()


class _Reader:
    """Recursive descent; a position in a list of tokens."""

    def __init__(self, text: str):
        self.tokens: list[str] = []
        self.at = self.depth = self.bars = self.angles = 0
        end, text = 0, text.strip()
        while end < len(text):
            match = TOKEN.match(text, end)
            if match is None:
                raise Unreadable
            if len(self.tokens) == TOKENS or len(match[1]) > DIGITS:
                raise TooLarge
            self.tokens.append(match[1])
            end = match.end()

    def whole(self) -> Tree:
        tree = self._sum()
        if self.at < len(self.tokens):
            raise Unreadable
        return tree

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self) -> str:
        token = self.next
        if not token:
            raise Unreadable
        self.at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise Unreadable

    def _sum(self) -> Tree:
        tree = self._product()
        while self.next in ("+", "-"):
            operator = self._take()
            tree = (operator, tree, self._product())
        return tree

    def _product(self) -> Tree:
        tree, divided = self._signed(), False
        while True:
            token = self.next
            if token in ("*", "\\cdot", "\\times"):
                self._take()
                tree = ("*", tree, self._signed())
            elif token in ("/", "\\div"):
                self._take()
                tree, divided = ("/", tree, self._signed()), True
            elif self._starts():
                if divided or token[0].isdigit() or token[0] == ".":
                    raise Unreadable  # 1/2x is read both ways, and 1 2 is no product
                tree = ("*", tree, self._power())
            else:
                return tree

    def _signed(self) -> Tree:
        signs = 0
        while self.next in ("+", "-"):
            signs += self._take() == "-"
        tree = self._power()
        return ("-", ("num", Fraction(0)), tree) if signs % 2 else tree

    def _starts(self) -> bool:
        """Whether a factor begins here."""
        token = self.next
        if token == "|":
            return not self.bars
        return token not in ("", "\\cdot", "\\times", "\\div") and token not in "+-*/^_!)}][°"

    def _power(self) -> Tree:
        return self._deeper(self._postfixed)

    def _deeper(self, part: Callable[[], Tree]) -> Tree:
        self.depth += 1
        if self.depth > NESTED:
            raise TooLarge
        tree = part()
        self.depth -= 1
        return tree

    def _postfixed(self) -> Tree:
        tree = self._degrees(self._atom())
        if self.next == "!":
            self._take()
            tree = ("!", tree)
        if self.next == "^":
            tree = ("^", tree, self._exponent())
        if self.next in ("^", "!", "_"):
            raise Unreadable  # 5!! is not (5!)!
        return tree

    def _degrees(self, tree: Tree) -> Tree:
        if self.next != "°" or not self.angles:
            return tree
        self._take()
        return ("*", tree, DEGREE)

    def _exponent(self) -> Tree:
        self._expect("^")
        if self.next in ("+", "-"):
            return self._signed()
        return self._argument()

    def _argument(self) -> Tree:
        """One token, or a group: what follows ^ and \\sqrt. A number is taken whole: 2^10."""
        return self._group() if self.next in ("{", "(") else self._deeper(self._atom)

    def _group(self) -> Tree:
        closing = {"{": "}", "(": ")"}.get(self._take())
        if closing is None:
            raise Unreadable
        bars, self.bars = self.bars, 0
        tree = self._sum()
        self.bars = bars
        self._expect(closing)
        return tree

    def _atom(self) -> Tree:
        token = self.next
        if token in ("(", "{"):
            return self._group()
        self._take()
        if token[0].isdigit() or token[0] == ".":
            return self._number(token)
        if token == "|":
            self.bars += 1
            tree = self._sum()
            self._expect("|")
            self.bars -= 1
            return ("abs", tree)
        if token.isalpha() or GREEK.fullmatch(token):
            return ("var", token.lstrip("\\") + self._subscript())
        if token == "\\pi":
            return ("var", "pi")
        if token in ("\\frac", "\\binom"):
            return ("/" if token == "\\frac" else "binom", self._group(), self._group())
        if token == "\\sqrt":
            degree: Tree = ("num", Fraction(2))
            if self.next == "[":
                self._take()
                degree = self._sum()
                self._expect("]")
            return ("root", self._argument(), degree)
        if token[1:] in FUNCTIONS:
            return self._function(FUNCTIONS[token[1:]])
        raise Unreadable

    def _number(self, token: str) -> Tree:
        whole = Fraction(token)
        part = self.tokens[self.at : self.at + 7]
        fraction = token.isdigit() and part[::3] == ["\\frac", "}", "}"] and part[1] == part[4] == "{"
        if fraction and part[2].isdigit() and part[5].isdigit() and int(part[2]) < int(part[5]):
            self.at += 7
            return ("num", whole + Fraction(int(part[2]), int(part[5])))  # a mixed number: 1\frac{1}{2}
        before, after = self.tokens[self.at - 2 : self.at - 1], self.tokens[self.at + 3 : self.at + 4]
        alone = before in ([], ["("], ["{"], ["+"], ["-"]) and after in ([], [")"], ["}"], ["+"], ["-"])
        if alone and token.isdigit() and part[1:2] == ["/"] and part[0].isdigit() and part[2].isdigit():
            if int(part[0]) >= int(part[2]):
                raise Unreadable
            self.at += 3
            return ("num", whole + Fraction(int(part[0]), int(part[2])))  # 1 1/2
        return ("num", whole)

    def _subscript(self) -> str:
        if self.next != "_":
            return ""
        self._take()
        name = self._take()
        if name == "{":
            name = ""
            while self.next != "}":
                name += self._take()
            self._take()
        if not name.isalnum():
            raise Unreadable
        return f"_{name}"

    def _function(self, name: str) -> Tree:
        power: Tree | None = None
        base: Tree | None = None
        if name == "log" and self.next == "_":
            self._take()
            base = self._argument()
        if name == "lg":
            name, base = "log", ("num", Fraction(10))
        if self.next == "^":
            power = self._exponent()
            if power == ("-", ("num", Fraction(0)), ("num", Fraction(1))):
                if name not in INVERSE:
                    raise Unreadable
                name, power = INVERSE[name], None
        self.angles += name in ANGLED
        if self.next in ("(", "{"):
            argument = self._degrees(self._group())
            if self.next == "^":
                raise Unreadable  # \sin(x)^2 is read both ways
        else:
            argument = self._power()
            while self._starts() and self.next[1:] not in FUNCTIONS and self.next != "(":
                argument = ("*", argument, self._power())
        self.angles -= name in ANGLED
        tree: Tree = ("call", "ln" if base else name, argument)
        if base:
            tree = ("/", tree, ("call", "ln", base))
        return ("^", tree, power) if power else tree
