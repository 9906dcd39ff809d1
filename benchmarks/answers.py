"""Answers such as models write to mathematical questions, and answers that want to do harm; each a function of a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from rlreason.types import Task

THOUGHTS = [
    "First we look at what is given.", "Let me define x and y.", "So 3 + 4 = 7, and 7 times 12 is 84.",
    "Wait, that cannot be right.", "We check: \\frac{3}{4} of 96 is 72.", "By symmetry both cases are the same.",
    "Then the sum is $\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}$.", "The triangle has sides 3, 4 and 5.",
    "Substituting back gives $x^2 - 5x + 6 = 0$.", "Therefore we divide by 2.", "That leaves the second equation.",
    "Now the derivative is $2x + 3$, which is positive.",
]  # fmt: skip
FORMS = [
    "So it is $\\boxed{%s}$.", "The final answer is \\boxed{%s}", "<answer>%s</answer>", "<answer>\\boxed{%s}</answer>",
    "The answer is $%s$.", "**Final Answer:** $%s$", "\\[ \\boxed{%s} \\]", "Therefore, the answer is: $%s$",
]  # fmt: skip


class Answer(NamedTuple):
    task: Task
    text: str
    right: bool | None  # known by construction; None of a hostile one


def ordinary(seed: int) -> Answer:
    """An answer to a task of its own, right half of the time. About one in four is more than a number, set or pair of
    numbers, and one in a hundred is for math-verify."""
    rng = random.Random(f"ordinary/{seed}")
    truth, right, wrong = rng.choices(*zip(*KINDS, strict=True))[0](rng)
    correct = rng.random() < 0.5
    prompt = f"Question {seed}: what is the value? Write it as \\boxed{{…}}."
    return Answer(Task(str(seed), prompt, truth), _text(rng, right if correct else wrong, prompt), correct)


def hostile(seed: int) -> Answer:
    """An answer that would cost a naive judge minutes, gigabytes or its life."""
    rng = random.Random(f"hostile/{seed}")
    content = rng.choice(FAMILIES)(rng)
    if rng.random() < 0.9:
        content = rng.choice(FORMS) % content
    truth = rng.choice(
        ["5", "\\frac{\\sqrt{3}}{2}", "x^2 + 1", "1, 2", "(1, 2)", "x > 5", "\\text{Evelyn}", "y = 2x", "2^{100}"]
    )
    return Answer(Task(f"hostile-{seed}", "What is it?", truth), content, None)


def mixed(number: int, share: float, seed: int = 0) -> Iterator[Answer]:
    """`number` answers, a `share` of them hostile."""
    rng = random.Random(f"mixed/{seed}")
    for i in range(number):
        yield hostile(seed + i) if rng.random() < share else ordinary(seed + i)


def _text(rng: random.Random, answer: str, prompt: str) -> str:
    """200 to 2,000 characters, most of them thoughts; now and then with the prompt repeated."""
    length, thoughts = rng.randint(150, 1900), [prompt] if rng.random() < 0.05 else []
    while sum(map(len, thoughts)) < length:
        thoughts.append(rng.choice(THOUGHTS))
    said = rng.choice(FORMS) % answer
    if rng.random() < 0.3:
        return f"{' '.join(thoughts)}\n\n{said}"
    return f"<think>{' '.join(thoughts)} Hmm, is it \\boxed{{12}}? No.</think>\n{said}"


# ---- ordinary ones: rng -> (truth, right answer, wrong answer) ----

Kind = tuple[str, str, str]


def _integer(rng: random.Random) -> Kind:
    n = rng.randint(-99, 10 ** rng.randint(1, 6))
    return (
        str(n),
        rng.choice([str(n), f"{n:,}", f"x = {n}", f"{n}.0", f"{n}.", f"{n} \\text{{ cm}}"]),
        str(n + rng.choice([-1, 1, 10])),
    )


def _decimal(rng: random.Random) -> Kind:
    n = rng.randint(1, 10**6)
    return (
        f"{n / 100:.2f}",
        rng.choice([f"{n / 100:.2f}", f"{n / 100:.3f}", f"\\frac{{{n}}}{{100}}", f"\\${n / 100:.2f}"]),
        f"{n / 100 + 0.01:.2f}",
    )


def _fraction(rng: random.Random) -> Kind:
    a, b, k = rng.randint(1, 999), rng.randint(2, 99), rng.randint(2, 9)
    right = rng.choice([f"\\dfrac{{{a}}}{{{b}}}", f"{a}/{b}", f"\\frac{{{a * k}}}{{{b * k}}}", f"\\frac{{{a}}}{{{b}}}"])
    return (
        f"\\frac{{{a}}}{{{b}}}",
        right,
        rng.choice([f"\\frac{{{a + 1}}}{{{b}}}", f"-\\frac{{{a}}}{{{b}}}", f"{a / b + 0.001:.4f}"]),
    )


def _percent(rng: random.Random) -> Kind:
    n = rng.randint(2, 99)
    return f"{n}\\%", rng.choice([f"{n}\\%", str(n), f"{n / 100}", f"{n} percent"]), f"{n + 1}\\%"


def _power(rng: random.Random) -> Kind:
    a, b = rng.randint(2, 9), rng.randint(2, 12)
    return str(a**b), rng.choice([f"{a}^{{{b}}}", f"{a}^{b}", str(a**b)]), f"{a}^{{{b + 1}}}"


def _set(rng: random.Random) -> Kind:
    a, b, c = rng.sample(range(-50, 50), 3)
    right = rng.choice([f"{b}, {a}", f"x = {a} \\text{{ or }} x = {b}", f"\\{{{b}, {a}\\}}", f"{a},{b}"])
    return f"{a}, {b}", right, rng.choice([f"{a}, {c}", str(a), f"{a}, {b}, {c}"])


def _pair(rng: random.Random) -> Kind:
    a, b = rng.sample(range(-50, 50), 2)
    return (
        f"({a}, {b})",
        rng.choice([f"({a},{b})", f"\\left({a}, {b}\\right)", f"({a}, \\frac{{{2 * b}}}{{2}})"]),
        f"({b}, {a})",
    )


def _radical(rng: random.Random) -> Kind:
    a, b, k = rng.randint(2, 9), rng.choice([2, 3, 5, 6, 7, 10, 11, 13]), rng.randint(2, 30)
    right = rng.choice([f"\\sqrt{{{a * a * b}}}", f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{b}}} \\cdot {a}"])
    return f"{a}\\sqrt{{{b}}} + {k}", rng.choice([f"{right} + {k}", f"{k} + {right}"]), f"{a + 1}\\sqrt{{{b}}} + {k}"


def _circle(rng: random.Random) -> Kind:
    a, b = rng.randint(2, 99), rng.randint(2, 9)
    return (
        f"\\frac{{{a}\\pi}}{{{b}}}",
        rng.choice([f"\\frac{{{a}}}{{{b}}}\\pi", f"{a}\\pi/{b}"]),
        f"\\frac{{{a + 1}\\pi}}{{{b}}}",
    )


def _polynomial(rng: random.Random) -> Kind:
    a, b, c = rng.randint(1, 30), rng.randint(1, 30), rng.randint(2, 9)
    truth = f"{c}x^2 + {c * (a + b)}x + {c * a * b}"
    right = rng.choice([f"{c}(x + {a})(x + {b})", f"{c * a * b} + {c * (a + b)}x + {c}x^2", f"f(x) = {truth}"])
    return truth, right, rng.choice([f"{c}(x - {a})(x + {b})", f"{c}x^2 + {c * (a + b)}x"])


def _rational(rng: random.Random) -> Kind:
    a, b = rng.sample(range(1, 60), 2)
    truth, right = f"\\frac{{1}}{{x + {a}}} - \\frac{{1}}{{x + {b}}}", f"\\frac{{{b - a}}}{{(x + {a})(x + {b})}}"
    return truth, right, f"\\frac{{{b - a + 1}}}{{(x + {a})(x + {b})}}"


def _trigonometric(rng: random.Random) -> Kind:
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    return f"{2 * a}\\sin({b}x)\\cos({b}x)", rng.choice([f"{a}\\sin({2 * b}x)", f"{a}\\sin {2 * b}x"]), f"{a}\\cos({2 * b}x)"


def _line(rng: random.Random) -> Kind:
    a, b = rng.randint(2, 30), rng.randint(1, 30)
    return f"y = {a}x + {b}", rng.choice([f"y = {b} + {a}x", f"{a}x + {b}"]), f"y = {a}x - {b}"


def _interval(rng: random.Random) -> Kind:
    a, b = rng.randint(-50, 0), rng.randint(1, 50)
    return f"[{a}, {b})", rng.choice([f"{a} \\le x < {b}", f"\\left[{a}, {b}\\right)"]), rng.choice([f"({a}, {b})", f"x < {b}"])


def _word(rng: random.Random) -> Kind:
    a, b = rng.sample(["Monday", "Tuesday", "Evelyn", "ellipse", "parabola", "even", "odd", "Yes"], 2)
    return f"\\text{{{a}}}", rng.choice([a, f"\\text{{{a}}}", a.lower()]), b


def _asked(rng: random.Random) -> Kind:
    """What only math-verify can tell."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 99)
    if rng.random() < 0.5:
        return f"\\lfloor {a}.5 \\rfloor + {b}", str(a + b), str(a + b + 1)
    return f"{a}x + {b}y < {c}", f"{c} > {b}y + {a}x", f"{a}x + {b}y < {c + 1}"


KINDS = [
    (_integer, 30), (_decimal, 8), (_fraction, 12), (_percent, 3), (_power, 3), (_set, 7), (_pair, 6), (_radical, 6),
    (_circle, 4),
    (_polynomial, 6), (_rational, 2), (_trigonometric, 2), (_line, 3), (_interval, 4), (_word, 3), (_asked, 1),
]  # fmt: skip


# ---- hostile ones: rng -> what stands where an answer should ----


def _tower(rng: random.Random) -> str:
    height = rng.randint(3, 12)
    return "^{".join(str(rng.randint(2, 99)) for _ in range(height)) + "}" * (height - 1)


def _plain_tower(rng: random.Random) -> str:
    return rng.choice(["^", "**"]).join(str(rng.randint(2, 99)) for _ in range(rng.randint(3, 12)))


def _factorial(rng: random.Random) -> str:
    n = rng.randint(4, 12)
    return rng.choice(
        [f"(10^{{{n}}})!", f"{10**n}!", "9" + "!" * n, f"\\binom{{10^{n}}}{{5 \\cdot 10^{{{n - 1}}}}}", f"\\Gamma(10^{{{n}}})"]
    )


def _expansion(rng: random.Random) -> str:
    n = 10 ** rng.randint(3, 9)
    return rng.choice(
        [f"x^{{{n}}}", f"(x + y + z)^{{{n}}}", f"(1 + x)^{{{n}}} - x^{{{n}}}", f"1.0000001^{{{n}}}", f"e^{{e^{{{n}}}}}"]
    )


def _operator(rng: random.Random) -> str:
    n = rng.randint(6, 15)
    return rng.choice([f"\\sum_{{i=1}}^{{10^{{{n}}}}} i", f"\\prod_{{i=1}}^{{10^{n}}} i", "\\int e^{x^x} dx",
        f"\\lim_{{x \\to {n}}} x^x",
                       f"\\lfloor 10^{{10^{{{n}}}}} \\rfloor", f"7^{{7^{{{n}}}}} \\mod 10"])  # fmt: skip


def _nest(rng: random.Random) -> str:
    opening, n = rng.choice(["\\sqrt{", "\\frac{1}{", "{", "\\left(", "(", "\\boxed{", "\\sin{", "|"]), 10 ** rng.randint(1, 5)
    closing = {"(": ")", "\\left(": "\\right)", "|": "|"}.get(opening, "}")
    return opening * n + "2" + rng.choice([closing, ""]) * n


def _matrix(rng: random.Random) -> str:
    n = rng.randint(2, 100)
    rows = "\\\\".join("&".join(str(rng.randint(0, 9)) for _ in range(n)) for _ in range(n))
    return f"\\det\\begin{{pmatrix}}{rows}\\end{{pmatrix}}"


def _long(rng: random.Random) -> str:
    piece = rng.choice(["9", "1,", "x+", "\\pm", "-", "1 ", "\\", "x=", "x<", "\\text{a}", "apple ", "$", "\n", "####",
    "answer is ", "<answer>",
                        "\x00", "\ud800", "\u202e", "é", "1/", "\\sin", "\\boxed", "&", "(1,2)\\cup", "{,}", "x_{1}",
                        "0.0"])  # fmt: skip
    return piece * rng.choice([10, 100, 200, 400, 1000, 10_000]) if rng.random() < 0.97 else (piece * 1_000_000)[:1_000_000]


def _noise(rng: random.Random) -> str:
    pieces = ["\\frac", "{", "}", "^", "1", "x", "(", ")", "\\sqrt", "=", "<", "\\le", ",", "\\cup", "!", "\\pm", "|", "_",
    "\\text{", "\x00", "\ud83d",
              "\\begin{pmatrix}", "\\end{pmatrix}", "\\infty", "%", "\\{", "\\}", "[", "]", "&", "\\\\", ":",
              "9" * 30]  # fmt: skip
    return "".join(rng.choices(pieces, k=rng.randint(1, 60)))


FAMILIES = [_tower, _plain_tower, _factorial, _expansion, _operator, _nest, _matrix, _long, _noise]
