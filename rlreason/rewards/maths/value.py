"""What an expression is worth, at points: whether two of them are the same. Every cost is bounded; knows no sympy.

It decides in microseconds what a computer algebra system needs 10 to 100 ms for: two expressions that differ at a point
are different, and two that agree at three points, exactly or to 30 digits, are the same (Schwartz-Zippel).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any
from zlib import crc32

from rlreason.rewards.maths.expression import TooLarge, Tree, Unreadable

BITS = 8192  # of an exact numerator or denominator at most: about 2,400 digits
POINTS = 3  # where expressions with variables are compared
CONSTANTS = frozenset(("pi", "e", "i"))
RECIPROCAL = {"sec": "cos", "csc": "sin", "cot": "tan"}


class Undefined(Exception):
    """It has no value: 1/0, log 0."""


def same(truth: Tree, answer: Tree) -> bool:
    """Whether two expressions have the same value, whatever their variables' values.

    Rational functions are compared exactly. Others are told apart by floats that differ by a thousandth, and count as
    the same if they agree to 30 of 50 digits. Raises `TooLarge`, `Unreadable` for the factorial of a variable, or
    `Undefined` if one has no value.
    """
    if _uses_log(truth) or _uses_log(answer):  # log without a base: to base e for some, 10 for others
        return any(_agree(truth, answer, base) for base in (10, 0))
    return _agree(truth, answer, 0)


def constant(tree: Tree) -> bool:
    """Whether an expression has no variables."""
    return not _variables(tree)


def defined(tree: Tree) -> bool:
    """Whether an expression has a value: 1/0 has none."""
    try:
        _Values(cmath, 0, 10).of(tree)
    except Undefined:
        return False
    return True


def within(tree: Tree, number: Fraction, distance: Fraction) -> bool:
    """Whether a constant is no further than `distance` from a number, to 50 digits; no expression with variables is.

    Raises `TooLarge`, or `Undefined` if it has no value.
    """
    if _variables(tree):
        return False
    values = _Values(cmath, 0, 10)
    rough = values.lift(values.of(tree))  # what is too large for a float is too large for 50 digits
    if not cmath.isfinite(rough):
        raise TooLarge
    if abs(rough - values.lift(number)) > 2 * abs(values.lift(distance)) + 1e-3 * abs(rough):
        return False
    import mpmath

    with mpmath.workdps(50):
        values = _Values(mpmath.mp, 0, 10)
        return bool(abs(values.lift(values.of(tree)) - values.lift(number)) <= values.lift(distance))


def proportional(a: Tree, b: Tree) -> bool:
    """Whether a = 0 and b = 0 are the same equation, one a multiple of the other. Raises `TooLarge`, `Undefined`."""
    import mpmath

    rough = [(values.lift(values.of(tree))) for values in (_Values(cmath, p, 10) for p in range(POINTS)) for tree in (a, b)]
    if not all(map(cmath.isfinite, rough)):
        raise TooLarge
    with mpmath.workdps(50):
        points = [_Values(mpmath.mp, point, 10) for point in range(POINTS)]
        (first, second), *others = [(values.lift(values.of(a)), values.lift(values.of(b))) for values in points]
        if not first or not second:
            return False
        small = mpmath.mpf(10) ** -30
        return all(abs(x * second - y * first) <= small * abs(x * second) for x, y in others)


def _agree(truth: Tree, answer: Tree, log: int) -> bool:
    exact = True
    points = range(POINTS if _variables(truth) or _variables(answer) else 1)
    for point in points:
        values = _Values(cmath, point, log)
        a, b = values.of(truth), values.of(answer)
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            if a != b:
                return False
            continue
        exact = False
        a, b = values.lift(a), values.lift(b)
        if not (cmath.isfinite(a) and cmath.isfinite(b)):
            raise TooLarge
        if abs(a - b) > 1e-3 * max(abs(a), abs(b)) and max(abs(a), abs(b)) > 1e-6:
            return False
    return exact or all(_close(truth, answer, point, log) for point in points)


def _close(truth: Tree, answer: Tree, point: int, log: int) -> bool:
    import mpmath

    with mpmath.workdps(50):
        values = _Values(mpmath.mp, point, log)
        a, b = values.lift(values.of(truth)), values.lift(values.of(answer))
        largest = max(abs(a), abs(b))
        if largest > mpmath.mpf(10) ** 40:
            raise TooLarge  # most likely a division by what would be 0 with more digits
        return bool(largest < mpmath.mpf(10) ** -40 or abs(a - b) < largest * mpmath.mpf(10) ** -30)


def _nodes(tree: Tree) -> Iterator[Tree]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(child for child in node[1:] if isinstance(child, tuple))


def _variables(tree: Tree) -> bool:
    return any(node[0] == "var" and node[1] not in CONSTANTS for node in _nodes(tree))


def _uses_log(tree: Tree) -> bool:
    return any(node[0] == "call" and node[1] == "log" for node in _nodes(tree))


class _Values:
    """Values of trees at one point, in floats (`library` is cmath) or to 50 digits (mpmath); exact where they can be."""

    def __init__(self, library: Any, point: int, log: int):
        self.library, self.point, self.log = library, point, log

    def of(self, tree: Tree) -> Any:
        try:
            return self._of(tree)
        except (ZeroDivisionError, ValueError) as error:  # ValueError: cmath's domain error
            raise Undefined from error
        except OverflowError as error:
            raise TooLarge from error

    def lift(self, number: Any) -> Any:
        """A Fraction as a number of the library."""
        if not isinstance(number, Fraction):
            return number
        if self.library is cmath:
            try:
                return complex(number)
            except OverflowError as error:
                raise TooLarge from error
        return self.library.mpf(number.numerator) / number.denominator

    def _of(self, tree: Tree) -> Any:
        kind, *children = tree
        if kind == "num":
            return children[0]
        if kind == "var":
            return self._variable(children[0])
        if kind == "call":
            return self._call(children[0], self.lift(self._of(children[1])))
        a = self._of(children[0])
        b = self._of(children[1]) if len(children) > 1 else None
        if kind == "abs":
            return abs(a)
        if kind in ("!", "binom"):
            return _count(kind, a, b)
        if kind == "root":
            return self._root(a, b)
        if kind == "^":
            return self._power(a, b)
        if not (isinstance(a, Fraction) and isinstance(b, Fraction)):
            a, b = self.lift(a), self.lift(b)
        result = a + b if kind == "+" else a - b if kind == "-" else a * b if kind == "*" else a / b
        return _bounded(result) if isinstance(result, Fraction) else result

    def _variable(self, name: str) -> Any:
        if name == "i":
            return 1j if self.library is cmath else self.library.mpc(0, 1)
        if name in ("pi", "e"):
            return +getattr(self.library, name)
        size = Fraction(20 + crc32(f"{name}/{self.point}".encode()) % 181, 64)  # between 0.3 and 3.2, exact as a float
        return -size if self.point == 2 else size

    def _call(self, name: str, x: Any) -> Any:
        if name in RECIPROCAL:
            return 1 / getattr(self.library, RECIPROCAL[name])(x)
        if name == "log" and self.log:
            return self.library.log(x) / self.library.log(self.log)
        return getattr(self.library, "log" if name == "ln" else name)(x)

    def _root(self, x: Any, degree: Any) -> Any:
        x = self.lift(x)
        if degree == 2:
            return self.library.sqrt(x)
        if isinstance(degree, Fraction) and degree.denominator == 1 and degree % 2 and x.imag == 0 and x.real < 0:
            return -((-x) ** (1 / self.lift(degree)))  # the cube root of -8 is -2
        return x ** (1 / self.lift(degree))

    def _power(self, base: Any, exponent: Any) -> Any:
        if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
            size, n = max(base.numerator.bit_length(), base.denominator.bit_length()), exponent.numerator
            if size == 1 and n:  # of 0, 1 and -1 only the sign and the parity of the exponent matter
                n = (2 - n % 2) * (1 if n > 0 else -1)
            if abs(n) * size > 2 * BITS:
                raise TooLarge
            return _bounded(base**n)
        return self.lift(base) ** self.lift(exponent)


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > BITS:
        raise TooLarge
    return number


def _count(kind: str, n: Any, k: Any) -> Fraction:
    counts = [x for x in (n, k) if x is not None]
    if not all(isinstance(x, Fraction) and x.denominator == 1 for x in counts):
        raise Unreadable  # n! of a variable n
    if any(x > 500 for x in counts):
        raise TooLarge
    if any(x < 0 for x in counts):
        raise Undefined
    return Fraction(math.factorial(int(n)) if kind == "!" else math.comb(int(n), int(k)))
