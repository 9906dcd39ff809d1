"""Rewards that fail: told once a kind, with function and sample; and the end when they are too many."""

import pytest

from rlreason.errors import RolloutError
from rlreason.rewards.pool.budget import Budget
from rlreason.types import Group, Task


@pytest.fixture
def group(sample):
    """A group of four answers; those at the places given have failed for that cause."""

    def make(task, failed=(), cause="raised ValueError: bad"):
        samples = [sample(1, 1, None if i in failed else 1.0) for i in range(4)]
        for i in failed:
            samples[i].failures, samples[i].text = {"mine.reward": cause}, "x" * 300
        return Group(Task(task, "p"), samples)

    return make


@pytest.fixture
def told():
    return {"events": [], "said": []}


def budget(told, share, step=8):
    return Budget(share, step, lambda name, **more: told["events"].append({"event": name} | more), told["said"].append)


def test_a_kind_of_failure_is_told_once_with_function_and_sample(told, group):
    b = budget(told, 1.0)
    for failed in ([], [2, 3], [0]):
        b.look(group("t1", failed))
    b.look(group("t2", [1], "raised ValueError: worse"))
    b.look(group("t3", [3], "hung for more than 10 s and was killed"))
    assert told["events"] == [
        {"event": "reward", "reward": "mine.reward", "task": task, "sample": i, "cause": cause, "text": "x" * 200}
        for task, i, cause in [("t1", 2, "raised ValueError: bad"), ("t3", 3, "hung for more than 10 s and was killed")]
    ]
    assert told["said"][0].startswith("the reward mine.reward raised ValueError: bad, on sample 2 of task t1")
    assert len(told["said"]) == 2


def test_what_is_told_in_a_step_has_a_limit(told, group):
    b = budget(told, 1.0, step=400)
    for i in range(200):
        b.look(group(f"t{i}", [0], f"raised Odd{i}: no two are the same"))
    assert len(told["events"]) == 2 * 20


@pytest.mark.parametrize(
    ("share", "failed", "ends_at"),  # of groups of four answers; a step is two groups
    [
        (0.5, [4, 4], 2),  # not before a step's worth was seen
        (0.5, [2, 2, 2, 2, 2], None),  # half is not more than half
        (0.5, [0, 4, 3], 3),
        (0.0, [0, 0, 0, 1], 4),
        (1.0, [4] * 30, None),
        (0.1, [0] * 20 + [4, 4, 1], 23),  # 8 of the last 80 are a tenth
        (0.1, [4] + [0] * 30 + [4, 4], None),  # what is older than ten steps is forgotten
        (0.3, [2, 0, 0, 1, 0, 4, 4], 7),  # 7 of 24 is not, 11 of 28 is
    ],
)
def test_the_run_ends_when_more_are_lost_than_may_be(told, group, share, failed, ends_at):
    b = budget(told, share)
    keep = b.watch(lambda group: False)
    for number, count in enumerate(failed, 1):
        if number == ends_at:
            with pytest.raises(RolloutError, match=r"of the last .* sample 0 of task t\d+: the reward mine.reward raised"):
                keep(group(f"t{number}", range(count)))
            return
        assert keep(group(f"t{number}", range(count))) is False
    assert ends_at is None


def test_what_a_reward_cannot_judge_is_no_failure(told, sample):
    b = budget(told, 0.0)
    for _ in range(10):
        b.look(Group(Task("t", "p"), [sample(1, 1, None) for _ in range(4)]))
    assert told == {"events": [], "said": []}
