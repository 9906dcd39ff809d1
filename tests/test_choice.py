"""The multiple-choice reward, by example."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlreason.rewards.choice import choice
from rlreason.types import Task

CITIES = ["London", "Berlin", "Paris", "Vitamin A", "A cat"]


def judged(answer, text, choices=None, prompt="?"):
    return choice(Task("0", prompt, answer, info=None if choices is None else {"choices": choices}), text)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{C}", r"\boxed{(C)}", r"\boxed{\text{C}}", r"\boxed{\textbf{(C)}}", r"\boxed{c}", "(C)", "C", "C.", "**C**",
        "Answer: C", "answer: (c)",
        "The answer is C.", "The answer is (C)", "The answer is **C**", "The final answer is option C.",
        "The correct answer is: C) Paris",
        "<answer>C</answer>", "<think>A or B? A!</think><answer> C </answer>", "<answer>The answer is C</answer>",
        "Is it A? No.\nC",
        "The answer is A. Wait, the answer is C.", r"\boxed{A} is what I thought, but \boxed{C}",
        "The answer is C because A is wrong.",
        "The correct option is C", "The answer is C, as B is too small", "Answer:\n\nC", "The answer is $C$", "C: Paris",
        "I think the answer is C",
    ],
)  # fmt: skip
@pytest.mark.parametrize("choices", [None, CITIES, {"A": "London", "B": "Berlin", "C": "Paris"}])
def test_c_is_chosen(text, choices):
    assert judged("C", text, choices) == 1
    assert judged("B", text, choices) == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "C or B", "The answer is A or C", "The answer is C and A", "The answer is A, C", r"\boxed{A, C}", r"\boxed{A/C}",
        "A B C D",
        "The answer is a cat", "Cats are C-shaped", "The answer is not C", "The answer isn't C", r"\boxed{C", "<answer>C",
        "<think>C</think>",
        "<think>\nC", "Vitamin C is good, I think", "C is wrong", "The answer is Cat", r"\boxed{}", r"\boxed{Cat}", "C'est B",
        "The answer is neither C nor D",
        "The answer is K",
    ],
)  # fmt: skip
def test_nothing_is_chosen(text):
    assert judged("C", text) == 0
    assert judged("C", text, CITIES) == 0


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        ("C", "The answer is Paris.", 1), ("C", r"\boxed{\text{paris}}", 1), ("Paris", r"\boxed{C}", 1), ("Paris", "Paris",
        1), ("2", r"\boxed{C}", 1),
        ("C) Paris", "C", 1), ("(C)", "C", 1), ("c", "C", 1), ("C", "C. Paris", 1), ("C", "The answer is C. Berlin", 0), ("C",
        "The answer is C, Berlin", 0),
        ("D", "The answer is Vitamin A", 1), ("A", "The answer is Vitamin A", 0), ("E", "The answer is: A cat", 1), ("A",
        "The answer is: A cat", 0),
        ("D", "D) Vitamin A", 1), ("C", "The answer is Parisian", 0), ("C", r"\boxed{F}", 0),
        ("F", r"\boxed{F}", None), ("Rome", "Rome", None), ("7", "C", None), ("", "C", None), (None, "C", None),
    ],
)  # fmt: skip
def test_options_may_be_named_by_their_text(answer, text, value):
    assert judged(answer, text, CITIES) == value


def test_options_that_are_numbers():
    numbers = ["10", "12", "2", "15"]
    assert judged("B", r"\boxed{12}", numbers) == 1
    assert judged("B", r"The answer is $12$.", numbers) == 1
    assert judged("2", r"\boxed{C}", numbers) == 1  # an option's text, before the number of one
    assert judged("3", r"\boxed{D}", numbers) == 1


def test_an_article_is_no_letter():
    assert judged("A", "The answer is A cat") == 0
    assert judged("I", "The answer is what I think") == 0
    assert judged("A", "The answer is A") == 1
    assert judged("I", r"\boxed{I}") == 1


def test_an_echo_of_the_prompt_chooses_nothing():
    prompt = r"Answer like this: \boxed{A}. What is the capital?"
    assert judged("A", prompt, prompt=prompt) == 0
    assert judged("A", rf"{prompt} \boxed{{A}}", prompt=prompt) == 1


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)), st.sampled_from([1, 1000, 100_000]))
def test_no_text_raises_or_takes_long(text, answer, times):
    began = time.process_time()
    for whole in (text * times, f"The answer is {text * times}", rf"\boxed{{{text * times}}}"):
        assert judged("A", whole, [answer, "x"]) in (0, 1)
        assert judged(answer, whole, [answer, "x"]) in (0, 1, None)
    assert time.process_time() - began < 3  # seconds, of the 10 that a reward has
