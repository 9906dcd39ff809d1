"""Scores and their intervals."""

import asyncio

import pytest

from rlreason.errors import RolloutError
from rlreason.evaluate import evaluate, interval, wilson
from rlreason.types import Group, Task


@pytest.mark.parametrize(
    ("mean", "n", "low", "high"),  # Wilson's interval, from its formula with a pocket calculator
    [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.9, 256, 0.8572, 0.9309)],
)
def test_wilson(mean, n, low, high):
    score = wilson(mean, n)
    assert (score.low, score.high) == pytest.approx((low, high), abs=2e-4)


def test_a_metric_beyond_0_and_1_has_a_normal_interval():
    score = interval([-1.0, 3.0, 1.0])  # standard deviation 2, so 1.96 * 2 / sqrt 3 either way
    assert (score.low, score.mean, score.high) == pytest.approx((-1.2632, 1.0, 3.2632), abs=1e-4)


class Fixed:
    """Answers task "3" with three samples of which the given are right."""

    def __init__(self, sample, parts):
        self.make, self.parts = sample, parts

    async def sample(self, task, n):
        samples = [self.make(1, 1, 0.0) for _ in range(n)]
        for s, part in zip(samples, self.parts[task.id], strict=True):
            s.parts = {"exact": part}
        return Group(task, samples)


def test_tasks_count_the_same_and_the_unjudged_do_not_count(sample):
    rollout = Fixed(sample, {"a": [1.0, 0.0], "b": [1.0, None], "c": [None, None]})
    score, groups = asyncio.run(evaluate(rollout, [Task(i, "") for i in "abc"], 2, "exact"))
    assert (score.mean, score.n, len(groups)) == (0.75, 2, 3)


def test_a_task_with_rewards_of_its_own_is_scored_by_the_first_of_them(sample):
    score, _ = asyncio.run(evaluate(Fixed(sample, {"a": [1.0]}), [Task("a", "", reward={"exact": 1.0})], 1, "numeric"))
    assert score.mean == 1


def test_nothing_judged_is_an_error(sample):
    with pytest.raises(RolloutError, match="could be judged"):
        asyncio.run(evaluate(Fixed(sample, {"a": [None]}), [Task("a", "")], 1, "exact"))
