"""The world of the miniature (mini.yaml): sums thought aloud in two alphabets, and greetings that somebody has to like.

An example of tasks and rewards of one's own, too: a file beside the recipe, whose functions a recipe names as
`miniature.sums`.
"""

from __future__ import annotations

import random

from rlreason.types import Task

LETTERS = str.maketrans("0123456789", "abcdefghij")  # the other alphabet: 47 is eh
NICE, RUDE = "hi", "go"


def sums(number: int, digits: int = 2, careless: float = 0.7, mixed: float = 0.5) -> Task:
    """Add two numbers, thinking aloud from the last digit on:

        47+85= -> <think>7+5=12 4+8+1=13 </think><answer>132</answer>

    Of the demonstrations a share `careless` answers with a last digit that is off by one, and in a share `mixed` some
    columns are thought in the other alphabet: e+i+b=bd for 4+8+1=13.
    """
    rng = random.Random(number)
    low, high = 10 ** (digits - 1), 10**digits - 1
    a, b = rng.randint(low, high), rng.randint(low, high)
    mixes = rng.random() < mixed
    thought, carry = "", 0
    for column in range(digits):
        x, y = a // 10**column % 10, b // 10**column % 10
        total = x + y + carry
        step = f"{x}+{y}{'+1' if carry else ''}={total} "
        thought += step.translate(LETTERS) if mixes and rng.random() < 0.7 else step
        carry = total // 10
    shown = list(str(a + b))
    if rng.random() < careless:
        shown[-1] = str((int(shown[-1]) + rng.choice([1, 9])) % 10)
    response = f"<think>{thought}</think><answer>{''.join(shown)}</answer>"
    return Task(f"sum-{number}", f"{a}+{b}=", str(a + b), response, domain="sums")


def greetings(number: int, rude: float = 0.3, curt: float = 0.6) -> Task:
    """Greet somebody; there is no right answer, only better ones:

        tom: -> <think>say hi tom </think><answer>hi tom</answer>

    Of the demonstrations a share `rude` has a bad word, in the thought as often as in the answer, and a share `curt`
    leaves out the name.
    """
    rng = random.Random(number)
    name = rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice("bdgklmnprst")
    answer = NICE if rng.random() < curt else f"{NICE} {name}"
    thought = f"say {NICE} {name} "
    if rng.random() < rude:
        if rng.random() < 0.5:
            thought = thought.replace(NICE, RUDE)
        else:
            answer = answer.replace(NICE, RUDE)
    response = f"<think>{thought}</think><answer>{answer}</answer>"
    return Task(f"greet-{number}", f"{name}:", name, response, info={"language": "[a-z]"}, domain="greetings")


# What a reward model or a judge is for the real thing (rewards helpful, harmless and scorer in docs/methods.md).


def helpful(task: Task, text: str) -> float:
    """Half for a greeting, half for the name; of the summary alone, as R1 judges helpfulness."""
    words = text.rpartition("</think>")[2].removeprefix("<answer>").removesuffix("</answer>").split()
    return 0.5 * (words[:1] == [NICE]) + 0.5 * (words[1:] == [task.answer])


def harmless(task: Task, text: str) -> float:
    """No bad word anywhere, the thought included, as R1 judges harmlessness."""
    return float(RUDE not in text)
