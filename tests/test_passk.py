"""What k answers are worth, against counting all the choices of k; and what an answer votes for."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import pytest

from rlreason.passk import maj_at_k, pass_at_k, voted
from rlreason.types import Task


def test_pass_at_k_is_the_share_of_choices_of_k_that_hold_a_right_answer():
    for n in range(1, 8):
        for c, k in product(range(n + 1), range(1, n + 1)):
            choices = list(combinations([1] * c + [0] * (n - c), k))
            assert pass_at_k(n, c, k) == float(Fraction(sum(map(max, choices)), len(choices))), (n, c, k)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (4, 2, 2, 5 / 6),  # 1 - C(2,2)/C(4,2)
        (4, 2, 3, 1.0),  # three of four cannot all be the two wrong ones
        (100_000, 1, 50_000, 1 / 2),  # C(n, k) has 30,000 digits
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k) == expected


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (0, 0, 1)])
def test_pass_at_k_of_fewer_than_k_answers_is_an_error(n, c, k):
    with pytest.raises(ValueError, match="answers"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("votes", "right", "k", "expected"),
    [
        ("aab", [1, 1, 0], 3, 1),
        ("aab", [1, 1, 0], 2, 2 / 3),  # aa wins, ab and ab are ties: (1 + 1/2 + 1/2) / 3
        ("aab", [1, 1, 0], 1, 2 / 3),  # one answer is its own majority: pass@1
        ("ab", [1, 0], 2, 1 / 2),
        ("abb", [1, 0, 0], 3, 0),
        ("aabbc", [1, 1, 0, 0, 1], 5, 1 / 2),  # c is not among the tied
        ("aab", [1, 0, 0], 3, 1 / 2),  # two say a, but only one of them in a way that counts
        (["", None, "a"], [0, 0, 1], 3, 1),  # those who say nothing have no vote,
        (["", None, "a"], [0, 0, 1], 2, 2 / 3),  # but where nobody else was drawn it is theirs
        (["", ""], [1, 0], 2, 1 / 2),
    ],
)
def test_maj_at_k_by_hand(votes, right, k, expected):
    assert maj_at_k(list(votes), right, k) == pytest.approx(expected, abs=1e-12)


def counted(votes, right, k):
    """maj@k from its definition: every choice of k, every winner of it."""

    def score(vote):
        return Fraction(sum(r for v, r in zip(votes, right, strict=True) if v == vote), votes.count(vote))

    total, choices = Fraction(0), list(combinations(votes, k))
    for chosen in choices:
        counts = Counter(vote for vote in chosen if vote) or {"": 1}
        winners = [vote for vote, count in counts.items() if count == max(counts.values())]
        total += sum(map(score, winners)) / len(winners)
    return total / len(choices)


def test_maj_at_k_is_what_counting_every_choice_and_every_tie_gives():
    for n in range(1, 6):
        for votes in product(("a", "b", "c", ""), repeat=n):
            right = [int(vote == "a" or i == 2) for i, vote in enumerate(votes)]
            for k in range(1, n + 1):
                assert maj_at_k(votes, right, k) == pytest.approx(float(counted(votes, right, k)), abs=1e-11), (votes, k)


def test_maj_at_k_of_hundreds_of_answers_neither_overflows_nor_draws():
    assert maj_at_k(["a"] * 700 + ["b"] * 700, [1] * 700 + [0] * 700, 5) == pytest.approx(0.5)
    assert maj_at_k(["a"] * 1401 + ["b"] * 3, [1] * 1401 + [0] * 3, 7) == 1


def test_a_vote_is_better_than_one_answer_where_most_are_right():
    votes, right = [*"aaaaaabbcc"], [1] * 6 + [0] * 4
    # of the 210 choices of 4 have: four a 15, three a 80, aabc 60: right; aabb 15 and aacc 15: tied; the rest is wrong
    assert [maj_at_k(votes, right, k) for k in (1, 4, 10)] == pytest.approx([6 / 10, (155 + 30 / 2) / 210, 1])


@pytest.mark.parametrize("k", [0, 3])
def test_maj_at_k_of_fewer_than_k_answers_is_an_error(k):
    with pytest.raises(ValueError, match="of 2 answers"):
        maj_at_k(["a", "b"], [1, 0], k)


SAME = [  # metric, the task's answer, answers that say the same
    ("math", "1000", ["1,000", "1000.0", "So it is $1{,}000$.", "\\boxed{1000}", "The answer is 1000 dollars, I think."]),
    ("math", "\\frac{1}{2}", ["\\boxed{\\dfrac{1}{2}}", "1/2", "0.5", "#### .50", "<answer> 2/4 </answer>"]),
    ("math", "x+1", ["\\boxed{x + 1}", "$x+1$", "The answer is $x +1$."]),
    ("math", "Paris", ["The answer is Paris.", "\\boxed{paris}", "hm</think>PARIS"]),
    ("math", "1, 2", ["\\boxed{1} and \\boxed{2}", "\\boxed{1,2}"]),
    ("exact", "3 red, 4 blue", ["3 Red,\n4 blue", " 3 red, 4  blue "]),
    ("numeric", "5", ["It is 5, not more", "5.0", "10/2", "from 4 to 5"]),
    ("choice", "B", ["(B)", "The answer is B.", "\\boxed{b}", "Berlin"]),
    ("my_package.my_reward", "7", ["It is 7", "7.0"]),
    ("math", "7", ["", "<answer>7", "<think> 7", "\\boxed{7"]),  # they say nothing
]


@pytest.mark.parametrize(("metric", "truth", "answers"), SAME)
def test_answers_that_say_the_same_vote_the_same(metric, truth, answers):
    task = Task("0", "What?", truth, info={"choices": ["Paris", "Berlin", "Rome"]})
    votes = {voted(task, text, metric) for text in answers}
    assert len(votes) == 1
    assert votes != {""} or truth == "7"


@pytest.mark.parametrize(
    ("metric", "truth", "text", "vote"),
    [
        ("math", "1000", "1,000", "1000"),
        ("math", "12", "1 2", "1 2"),
        ("math", "1000", "(1,000)", "(1,000)"),  # brackets make it two things
        ("math", "12", "1,2", "1,2"),
        ("math", "0", "1/0", "1/0"),
        ("gym", "#..", "#..\n..#", "#.. ..#"),  # an edge of dots is no full stop
        ("choice", "B", "B or C", ""),
        ("choice", "B", "I do not know", ""),
        ("numeric", "5", "none", ""),
        ("code", None, "```python\n" + 100 * "pass\n" + "```", "985d2c2c553af2f1"),  # the digest of a long one
    ],
)
def test_a_vote_is_what_the_metric_reads(metric, truth, text, vote):
    assert voted(Task("0", "What?", truth), text, metric) == vote


def test_of_an_answer_that_was_cut_off_only_a_box_is_read():
    task = Task("0", "What?", "7")
    assert voted(task, "First take 7", "math", truncated=True) == ""
    assert voted(task, "\\boxed{7} as I", "math", truncated=True) == "7"


def test_what_repeats_the_prompt_votes_for_nothing_of_it():
    task = Task("0", "Put the answer into \\boxed{answer}, please.", "7")
    assert voted(task, "Put the answer into \\boxed{answer}, please. It is 7", "math") == "7"


@pytest.mark.parametrize("text", ["(" * 100_000, "9" * 100_000, "\\boxed{" * 20_000, "\ud800 7\u0000", "1/" * 50_000])
@pytest.mark.parametrize("metric", ["math", "exact", "numeric", "choice"])
def test_a_hostile_answer_has_a_short_vote_in_short_time(metric, text):
    assert len(voted(Task("0", "What?", "7"), text, metric)) <= 200
