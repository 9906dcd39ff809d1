"""The maths reward: tables by hand, and what hostile text can do to it."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlreason.rewards.answer import boxes, stated, without_echo
from rlreason.rewards.maths import equal, math
from rlreason.types import Task


def judged(truth, text, prompt="?", **facts):
    return math(Task("0", prompt, truth), text, **facts)


SAME = {
    "spelling": [
        ("5", "5"), ("5", " 5. "), ("5", "$5$"), ("5", r"\(5\)"), ("5", r"\[5\]"), ("5", "**5**"), ("5", "{5}"), ("5", "(5)"),
        ("5", "+5"), ("-5", "−5"), ("5", "5\u200f"), (r"\frac12", r"\dfrac{1}{2}"), (r"\frac{1}{2}", r"\tfrac 1 2"),
        (r"\sqrt2", r"\sqrt{2}"), (r"\left(1, 2\right)", "(1,2)"), (r"x^{2}", "x^2"), ("2\\pi", "2π"), (r"2^{100}", "2^{100}"),
        (r"\mathrm{e}^2", "e^2"), ("x**2", "x^2"),
    ],
    "numbers": [
        ("0.5", ".5"), ("0.5", "1/2"), ("1/2", r"\frac{2}{4}"), ("1.5", r"1\frac{1}{2}"), ("-1.5", r"-1\frac12"),
        ("1000", "1,000"), ("1000", "1{,}000"), ("1000", r"1\,000"), ("1234567.5", "1,234,567.50"), ("1234567", "1 234 567"),
        ("007", "7"), ("300", "3e2"), ("1/6", r"0.1\overline{6}"), ("11111111100", r"11,\! 111,\! 111,\! 100"),
        ("1024", "2^{10}"), ("2^{10}", "1024"), ("1500", r"1.5 \times 10^3"), ("0.001", "10^{-3}"), ("120", "5!"),
        ("120", r"\binom{10}{3}"), ("1267650600228229401496703205376", "2^{100}"), ("14", r"2 \cdot (3 + 4)"),
        ("-2", r"\sqrt[3]{-8}"), ("3/2", "1 1/2"), ("1 1/2", "1.5"), ("-1.5", "-1 1/2"),
        (r"\frac{1234}{5}", r"\frac{1,234}{5}"), ("1234", r"\[1,234\]"), (r"\frac{1}{3}", "0.333333"), ("0.6666667", "2/3"),
        (r"\sqrt{2}", "1.41421356"), ("5000000", "5 million"),
    ],
    "units": [
        ("5", r"5 \text{ cm}"), ("5", r"5\,\mathrm{cm}^2"), (r"5 \text{ cm}", "5"), ("5", "5 apples"), ("5", "5 cm"),
        ("5", "$5"), ("5", r"\$5.00"), ("90", r"90^\circ"), ("90", "90°"), (r"120^{\circ}", "120 degrees"), ("50", r"50\%"),
        (r"50\%", "0.5"), ("0.5", "50%"), ("5", "5 square units"), (r"8\pi", r"8\pi\text{ square units}"),
        (r"8\pi\text{ cubic cm}", r"8\pi"), (r"8\pi", "8π square units"), ("x^2", r"x^2\text{ square cm}"), ("25", "25°C"),
        ("60", "60 km/h"), (r"\frac{1}{2}", r"\frac{1}{2} \text{ hours}"),
    ],
    "expressions": [
        (r"x^2+2x+1", "(x+1)^2"), (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}"),
        (r"\sin^2 x + \cos^2 x", "1"), (r"2\sin x\cos x", r"\sin(2x)"), (r"\ln 8", r"3 \ln 2"), (r"\log 2", r"\ln 2"),
        (r"\log_{2} 8", "3"), (r"e^{i\pi}", "-1"), ("|x|", r"\sqrt{x^2}"), ("a_1 + a_{2}", "a_2 + a_1"),
        ("2*sqrt(3)", r"\sqrt{12}"), (r"\sin 30^\circ", "0.5"), ("0.5", r"\sin 30^\circ"), (r"\cos 60^\circ", r"\frac12"),
        ("1", r"tan(45^\circ)"), ("1/2", r"\sin{30°}"), ("1/4", r"\sin^2 30°"), ("1/2", r"\sin(30)^{\circ}"), (r"\lg 100", "2"),
        ("2", "lg 100"), ("LWH", r"L \cdot H \cdot W"), ("AB", "BA"), (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\lfloor 2.5 \rfloor", "2"), ("xy", "yx"),
    ],
    "names": [
        ("5", "x = 5"), ("x=5", "5"), ("5", "2 + 3 = 5"), (r"25\pi", r"A = \pi r^2 = 25\pi"), ("2x+1", "f(x) = 2x + 1"),
        ("y=2x+1", "y = 1 + 2x"), ("y = 2x+1", "2x - y + 1 = 0"), ("x^2 + y^2 = 4", "2x^2 + 2y^2 = 8"),
        ("3.14", r"x \approx 3.14"), ("1.41", r"\sqrt2 \approx 1.41"), ("3.33", "10/3 = 3.33"), ("5", "a + b = 5"),
        ("5", "5 = x"),
    ],
    "sets": [  # without order
        ("1, 2", "2, 1"), (r"\{1,2\}", r"\{2, 1\}"), (r"\{1,2\}", "1, 2"), ("1, 2", "x = 2 or x = 1"),
        ("1,2", r"x=1 \text{ and } x=2"), (r"\pm 2", "2, -2"), ("2, -2", r"x = \pm 2"),
        (r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2"), ("1, 2", "1, 2, 2"), ("1, 2", "(2, 1)"), (r"\frac{1}{2}, 3", "3, 0.5"),
        ("(1,2), (3,4)", "(3,4), (1,2)"), ("1,234", "1234"), ("1, 234", "234, 1"), (r"\{5\}", "5"), (r"\emptyset", r"\{\}"),
        ("x=1, y=2", "y=2, x=1"),
    ],
    "tuples": [  # with order
        ("(1,2)", "(1, 2)"), ("(1,2)", "1, 2"), ("(1, 2)", "x = 1, y = 2"), ("(1,2)", "y=2,x=1"),
        ("[0,1)", r"\left[0, 1\right)"), ("(0.5, 3)", r"(\frac{1}{2}, 3)"), (r"(3, \frac{\pi}{2})", r"(3, \pi/2)"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4.0 \end{bmatrix}"),
        ("(x,y) = (1,2)", "(1,2)"),
    ],
    "inequalities": [
        ("x > 5", "5 < x"), (r"(5, \infty)", "x > 5"), (r"x \le 3", r"(-\infty, 3]"), (r"1 < x \leq 2", "(1, 2]"),
        ("2 ≥ x > 1", r"x \in (1, 2]"), (r"(-\infty, 1) \cup (2, \infty)", r"(2, \infty) \cup (-\infty, 1)"),
        (r"x < 1 \text{ or } x > 2", r"(-\infty,1)\cup(2,\infty)"), (r"\{x\mid x>0\}", r"(0,\infty)"),
        ("(-1,2]", r"\{x: -1<x\le 2\}"), ("x > 0", r"\{x \in \mathbb{R} | x > 0\}"), (r"\{x\mid x>0\}", r"\{t\mid t>0\}"),
        ("x + y > 5", "5 < y + x"), (r"[1,2]\cup[2,3]", "[1,3]"), (r"\mathbb{R}", r"(-\infty, \infty)"),
        (r"|x| \le 2", "[-2, 2]"),
    ],
    "words": [
        (r"\text{Evelyn}", "evelyn"), ("Monday", r"\text{Monday}"), (r"\text{(C)}", "C"), ("C", "(C)"), (r"\text{no}", "No"),
        (r"\text{A, C}", "A,C"), ("北京", "北京"), ("EVE", "EVE"), ("EVE", r"\text{EVE}"),
        (r"\text{EVE}", "EVE"), ("3:30", "3:30"),
        ("2516_8", "2516_{8}"), ("2516_8", "2516"),
    ],
}  # fmt: skip
DIFFERENT = {
    "spelling": [("5", "6"), ("5", "-5"), ("5", ""), ("5", "5 5"), ("12", "1 2"), ("x", "X"), ("5", r"\frac{5}{"),
    ("5", "five")],
    "numbers": [
        ("0.5", "0.50001"), ("1/3", "0.333"), ("1/3", "0.333334"), ("0", "0.0000001"), ("1.5", r"1\cdot\frac12"),
        ("1000", "1.000"), ("5", "1/0"), ("2^{100}", "2^{101}"), ("1" * 400, "1" * 399 + "2"), ("2", "2.0000001"),
        (r"10^{-8}", "0.00000"), ("5", "5!"), ("11/2", "1 1/2"), ("3", "2^1 1/2"), ("6.28", r"2\pi"), ("5", "5000000"),
        ("5", "5 million"),
    ],
    "units": [("5", "6 cm"), ("2", "2xy"), ("50", "5%"), ("5", "5 or 6"), ("5", "5 squared"), ("90", r"91^\circ"),
    ("5", "5 more than x")],
    "expressions": [
        ("x+1", "x-1"), ("x+1", "y+1"), ("(x+1)^2", "x^2+1"), (r"\sqrt{2}", "1.414"), ("x", "|x|"), (r"\ln 2", r"\log_2 e"),
        ("x^2", "x^3"),
        ("262537412640768744", r"e^{\pi\sqrt{163}}"),  # the two differ in the 31st digit
        (r"\sin 30", "0.5"), ("0.5", r"\sin 31°"), (r"\lg 100", r"\ln 100"), ("x^2+2x+1", "x^2+2x+1.0000000001"),
        (r"\sin x", r"\sin y"), ("1", "x"), ("5", "Answer"), (r"\frac{1}{2}", r"\int_0^1 x\,dx"), ("55", r"\sum_{i=1}^{10} i"),
        ("2", r"\frac{d}{dx} 2x"), ("0", r"\lim_{x\to 0} x"),
    ],
    "names": [("x=5", "y=5"), ("5", "x = 6"), ("y=2x+1", "y=2x"), ("x^2+y^2=4", "4"), ("x=5", "x=6"), ("5", "3=5"),
    ("5", "2+2=5"), ("5", "6 = 5 = x"), ("5", "1/0 = 5"), ("3", "10/3 = 3")],
    "sets": [
        ("1, 2", "1"), ("1, 2", "1, 2, 3"), ("1, 2", "1, 3"), ("5", "5, 6"), ("5", r"\pm 5"), (r"\{1,2\}", "(1,2)"),
        ("x=1, y=2", "x=2, y=1"), ("1200", r"\{1,200\}"), ("1200", "{1,200}"), ("x=1, y=2", "2, 1"),
        ("(1,2), (3,4)", "(2,1), (3,4)"), (r"\emptyset", "0"),
    ],
    "tuples": [
        ("(1,2)", "(2,1)"), ("(1,2)", "2, 1"), ("(1,2)", "[1,2]"), ("(1,2)", "(1,2,3)"), ("(3,1)", "(2,1)"), ("(1,2)", "1"),
        ("[0,1)", "[0,1]"), ("2500", "(2,500)"), ("1200", "[1,200]"), ("1234", r"\left(1,234\right)"), ("(1,234)", "1234"),
        ("(2,1)", "y=2,x=1"), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    ],
    "inequalities": [("x > 5", r"x \ge 5"), ("x > 5", "x < 5"), ("x > 5", "y > 5"), (r"(5,\infty)", r"x \geq 5"),
    ("x > 5", "5"), (r"\infty", r"-\infty"),
    (r"(0,\infty)", r"\{x\mid x\ge0\}"), (r"\{x\mid x>0\}", "(0,5)"), ("1<x<2", "1<x<3")],
    "words": [(r"\text{even}", "neve"), (r"\text{no}", "on"), ("Monday", "Tuesday"), ("3:30", "4:40"), ("2516_8", "2516_9"),
    ("ABC", "CBA"), ("BDA", "ABD"), ("EVE", "EEV"), ("ABC", r"\text{CBA}"), ("北京", "上海"), ("5", "北京")],
}  # fmt: skip


def rows(table):
    return [pytest.param(*pair, id=f"{rule}: {pair[0]} and {pair[1]}"[:60]) for rule, pairs in table.items() for pair in pairs]


@pytest.mark.parametrize(("truth", "answer"), rows(SAME))
def test_these_are_the_same(truth, answer):
    assert equal(truth, answer) is True


@pytest.mark.parametrize(("truth", "answer"), rows(DIFFERENT))
def test_these_are_different(truth, answer):
    assert equal(truth, answer) is False


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # the last box that is closed, whatever stands in it
        (r"so \boxed{5}.", "5"), (r"\boxed{4}? No: \boxed{5}", "5"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{5}", "5"), (r"\boxed 5", "5"), (r"\boxed{\{1,2\}}", r"\{1,2\}"), (r"\\boxed{5}", "5"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"), (r"\boxed{5} as \boxed{}", "5"), (r"\boxed{5} (I used \boxed)", "5"),
        (r"\boxed{ or \boxed{5}", "5"),
        # a box that is not closed is no answer, and those before it were not the last word
        (r"\boxed{5", None), (r"\boxed{4} and \boxed{5", None), (r"\boxed{\frac{1}{2}", None),
        # of boxes side by side too the last one counts
        (r"\boxed{1}, \boxed{2}", "2"), (r"$\boxed{1}$ or $\boxed{2}$", "2"), (r"\boxed{5} \boxed{5}", "5"),
        # thoughts are no answer, nor are tags that are not closed
        (r"<think>\boxed{4}</think> \boxed{5}", "5"), (r"<think>\boxed{5}</think>", None), (r"<think>\boxed{5}", None),
        (r"<think>a</think>b</think>\boxed{5}", "5"), ("<think>4</think><answer>5</answer>", "5"), ("<answer>5", None),
        (r"<think>in <answer>4</answer> tags</think> \boxed{5}", "5"), (r"<answer>\boxed{5}</answer> \boxed{6}", "5"),
        # without a box: GSM8K's mark, a statement, a last line that is a formula, its last formula or number
        ("2+3 = 5\n#### 5", "5"), ("The answer is 5.", "5"), ("Answer: 5", "5"), ("**Final Answer:** $5$", "$5$"),
        ("The answer is 3.5.", "3.5"), ("The final answer to this is: 72 apples.", "72 apples"),
        ("The answer is 4. No, the answer is 5.", "5"), ("Answer:\n5", "5"), ("The answer is 5 because 2 + 3 = 5.", "5"),
        ("The answer is Evelyn.", "Evelyn"), ("3 plus 2\nx = 5", "x = 5"), ("so it is $x=5$ then", "$x=5$"),
        ("She has 72 apples.", "72"), ("It is not 6, it is 5.", "5"), ("x is not 0, so there are 5.", "5"), ("", None),
        ("   ", None),
    ],
)  # fmt: skip
def test_where_the_answer_of_a_text_is(text, answer):
    assert stated(text)[-1:] == ([] if answer is None else [answer])


@pytest.mark.parametrize(
    ("truth", "text", "value"),
    [
        ("1, 2", r"One root is \boxed{1} and the other is \boxed{2}", 1),
        ("2", r"One root is \boxed{1} and the other is \boxed{2}", 1), ("July 14", "The answer is July 14.", 1),
        ("1, 2", "One root is \\boxed{1}.\nThe answer is \\boxed{2}", 0), ("2", r"\boxed{1} or \boxed{2}", 1),
        ("5", r"\boxed{5}\boxed{5}", 1), ("6", r"\boxed{5}\boxed{6}", 1), ("5", r"\boxed{5}\boxed{6}", 0),
        ("5", "So $\\boxed{6}$\n\n$\\boxed{5}$", 1), ("1, 2", r"$\boxed{2}$ or $\boxed{1}$", 1),
        ("1, 2", "$\\boxed{1, 3}$\n\n$\\boxed{1, 2}$", 1), ("1,234", r"\boxed{5} \boxed{1,234}", 1),
    ],
)  # fmt: skip
def test_all_boxes_of_a_line_count_where_the_truth_is_a_list(truth, text, value):
    assert judged(truth, text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is not 5", 0), ("I think it is between 4 and 5", 0), ("The answer is 5, not 6.", 1), ("It is 5 not 6.", 1),
        ("The answer is not $5$.", 0), ("It is $5$, not $6$.", 1), ("She has 4 or 5 apples", 0), ("It isn't 5", 0),
        ("It cannot be 5", 0), ("She has 5 apples and not a pear", 1), ("It makes 5 1/2 in sum", 0),
    ],
)  # fmt: skip
def test_a_number_that_is_denied_or_in_doubt_is_not_stated(text, value):
    assert judged("5", text) == value


@pytest.mark.parametrize("truth", ["5", r"Then $2+3=\boxed{5}$.", "2 + 3 = 5\n#### 5"])
def test_the_truth_may_be_a_whole_solution(truth):
    assert judged(truth, r"\boxed{5}") == 1
    assert judged(truth, r"\boxed{6}") == 0


def test_a_task_without_an_answer_cannot_be_judged():
    assert judged(None, r"\boxed{5}") is None
    assert judged(" ", r"\boxed{5}") is None
    assert judged("$$", r"\boxed{5}") is None
    assert judged("1" * 2001, r"\boxed{5}") is None


def test_what_is_beyond_the_bounds_is_undecided_but_for_equal_text():
    for large in ("10^{10^{10}}", "(10^{10})!", "x^{10^9}", r"\sum_{i=1}^{n} i^9", "n! + 1", "9" * 1990 + "^{9}"):
        assert judged(large, rf"\boxed{{{large}}}") == 1
        assert judged(large, r"\boxed{y^{99^{99}}}") is None
    assert equal("1/0", "5") is None
    assert equal("5", "10^{10^{10}} = 5") is None
    assert equal("n!", r"n \cdot (n-1)!") is None  # right, but not known to be


def test_a_number_in_a_formula_is_not_taken_for_the_answer():
    assert judged("3", r"5 \text{ if } x > 0, 3 \text{ else } 3") == 0
    assert judged("5", r"\det\begin{pmatrix}1 & 2\\3 & 5\end{pmatrix}") in (0, None)
    assert judged("5", "The answer is 5 million.") == 0


def test_an_echo_of_the_prompt_is_no_answer():
    prompt = r"What is 2 + 3? Answer like this: \boxed{5}"
    assert judged("5", prompt, prompt) == 0
    assert judged("5", f"{prompt}\n\nHm. {prompt}", prompt) == 0
    assert judged("5", rf"{prompt} It is \boxed{{5}}", prompt) == 1
    chat = [
        {"role": "system", "content": r"Put your answer in \boxed{5}."},
        {"role": "user", "content": "What is two plus three?"},
    ]
    assert judged("5", r"Put your answer in \boxed{5}.", chat) == 0
    assert judged("5", r"\boxed{5}", chat) == 1
    assert without_echo("5", "5") == "5"  # too short to be told from an answer


def test_a_truncated_text_has_an_answer_in_a_box_only():
    assert judged("5", "so that 2 + 3 = 5", truncated=False) == 1
    assert judged("5", "so that 2 + 3 = 5", truncated=True) == 0
    assert judged("5", r"\boxed{5} and that", truncated=True) == 1
    assert judged("5", r"<answer>5</answer> and", truncated=True) == 1


def test_boxes_tell_what_stands_between_them():
    assert boxes(r"a \boxed{1} b \boxed{2} c") == [("a ", "1"), (" b ", "2")]
    assert boxes("none") == []
    assert boxes(r"\boxed{1} \boxed{2") is None


NEST = 5000
HOSTILE = {
    "tower": "10^{10^{10}}", "tower of nines": "9^{9^{9^9}}", "tower of twos": "2^{2^{2^{2^{2^2}}}}",
    "tower, plain": "9**9**9**9",
    "power": "x^{10^9}", "power of a sum": "(x+y+z)^{999999}", "many powers": "+".join(f"(x+{i})^{{97}}" for i in range(40)),
    "factorial": "(10^{10})!", "factorials": "9!!!!!!", "binomial": r"\binom{10^9}{5 \cdot 10^8}",
    "exponentials": r"\exp(\exp(\exp(\exp 9)))",
    "exponential tower": "e^{e^{e^{e^9}}}",
    "roots": r"\sqrt{" * NEST + "2" + "}" * NEST, "fractions": r"\frac{1}{" * NEST + "2" + "}" * NEST,
    "short roots": r"\sqrt{" * 60 + "2" + "}" * 60, "sum": r"\sum_{i=1}^{10^{12}} i", "product": r"\prod_{i=1}^{10^9} i",
    "integral": r"\int e^{x^x} dx",
    "matrix": r"\begin{pmatrix}" + r"\\".join("&".join("1" * 100) for _ in range(100)) + r"\end{pmatrix}",
    "digits": "9" * 1_000_000,
    "braces": "{" * 100_000, "brackets": "(" * 100_000, "commas": "1," * 500, "signs": r"\pm" * 300, "minus": "-" * 400 + "1",
    "zeros": "0." + "0" * 450 + "1",
    "null": "\x00" * 1000, "surrogates": "\ud800" * 1000, "right to left": "\u202e5\u202c" * 100, "spaces": " " * 400 + "x",
    "digits and spaces": "1 " * 300,
    "backslashes": "\\" * 501,
    "equations": "x=" * 250, "relations": "x<" * 250, "inequality": r"x^{29} + y^{29} < (x+y+z)^{29}", "words": "apple " * 90,
    "cups": r"(1,3)\cup" * 50, "bars": "|" * 400, "sines": r"\sin" * 390 + "x", "division": "1/" * 200 + "0",
    "primes": "f'" * 200, "gamma": r"\Gamma(10^{10})",
    "modulus": r"7^{7^{7}} \mod 10", "floor": r"\lfloor 10^{10^{10}} \rfloor", "floor of e": r"\lfloor e^{e^{e^{e}}} \rfloor",
    "decimal": r"1.000001^{10^{9}}", "degrees": r"\sin 30°" * 60, "many degrees": r"\sin 3" + "°" * 400,
    "builders": r"\{x|" * 120 + "x>0" + r"\}" * 120, "thousands": "(1,000" * 80,
    "false sums": "=".join(["9^{9^9}"] * 60) + "=5",
    "not": "not " * 120 + "9", "lg": r"\lg " * 120 + "9", "square": r"x \text{ square }" * 30,
}  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "truth", ["5", r"\frac{\sqrt{3}}{2}", "x^2 + 1", "1, 2", "(1, 2)", "x > 5", r"\text{Evelyn}", r"y = 2x"]
)
@pytest.mark.parametrize("around", [r"Thus \boxed{%s}", "<answer>%s</answer>", "The answer is %s"])
def test_hostile_answers_take_a_moment_and_earn_nothing(truth, hostile, around):
    began = time.process_time()
    assert judged(truth, around % hostile if "%s" in around else around) in (0.0, None) or hostile in ("\u202e5\u202c" * 100,)
    assert time.process_time() - began < 3  # seconds, of the 10 that a reward has; well below 1 on an idle machine


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_truth_is_no_trouble_either(hostile):
    began = time.process_time()
    assert judged(hostile, r"\boxed{7}") in (0.0, None)
    assert time.process_time() - began < 3  # seconds, of the 10 that a reward has; well below 1 on an idle machine


def test_an_answer_of_a_megabyte_takes_no_longer():
    openings = ("\\boxed{", "\\boxed{5}", "\\boxed", "<answer>", "{", "\\frac{1}{", "answer is ", "$", "####", "\\(", "not 5, ")
    for text in (piece * (1_000_000 // len(piece)) for piece in (*openings, "x", "1+", "\n", "}", " not $")):
        began = time.process_time()
        assert judged("7", text) == 0
        assert judged("7", rf"{text} \boxed{{7}}") in (0, 1)
        assert time.process_time() - began < 3  # seconds, of the 10 that a reward has; well below 1 on an idle machine


PIECES = st.sampled_from(
    [r"\boxed{", "}", "{", r"\frac", "1", "2", "x", "^", "(", ")", ",", "=", " ", "$", r"\sqrt", r"\sin", r"\le", "<",
    r"\cup", r"\{", r"\}", "!",
     "answer is ", "<answer>", "</answer>", r"\text{", r"\pm", "|", "_", "%", "\n", "[", "]", r"\infty", "+", "-", "/", "&",
     "\\\\", ":", "0.5",
     r"\begin{pmatrix}", r"\end{pmatrix}", " and ", " or ", "\x00", "\ud800", "é", "cm", "apples"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.text(st.characters(codec=None)), st.lists(PIECES, max_size=40).map("".join)),
    st.sampled_from(["5", "1, 2", "x > 5", "x^2"]),
)
def test_no_text_raises_or_takes_long(text, truth):
    began = time.process_time()
    assert judged(truth, text) in (0.0, 1.0, None)
    assert judged(truth, rf"\boxed{{{text}}}") in (0.0, 1.0, None)
    assert judged(text, rf"\boxed{{{truth}}}") in (0.0, 1.0, None)
    assert time.process_time() - began < 3  # seconds, of the 10 that a reward has


def expression(rng, depth=3):
    """A random expression in ordinary LaTeX."""
    if not depth or rng.random() < 0.2:
        return rng.choice([str(rng.randint(1, 99)), "x", "y", r"\pi", f"{rng.uniform(0.1, 1):.2f}"])
    a, b = expression(rng, depth - 1), expression(rng, depth - 1)
    return rng.choice([f"({a} + {b})", f"({a}) ({b})", rf"\frac{{{a}}}{{{b}}}", rf"\sqrt{{{a}}}", f"({a})^2"])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_an_ordinary_answer_equals_itself_and_not_its_successor(seed):
    answer = expression(random.Random(seed))
    assert equal(answer, answer)
    assert equal(f"{answer} + 1", f"1 + {answer}")
    assert equal(answer, f"{answer} + 1") is not True
