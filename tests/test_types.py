"""From samples to batches: what is padded, how much each token weighs, who gets what."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlreason.types import Batch, Group, Task, micro_batches, token_weights


def test_collate_pads_on_the_right_with_nothing(sample):
    rows = [sample(1, 2), sample(2, 3)]
    batch = Batch.collate(rows, advantage=[1.0, -2.0], weight=[0.5, np.array([9, 9, 1, 2, 3])])
    assert batch.tokens.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert batch.mask.tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert batch.weight.tolist() == [[0, 0.5, 0.5, 0, 0], [0, 0, 1, 2, 3]]
    assert batch.advantage.tolist() == [[0, 1, 1, 0, 0], [0, 0, -2, -2, -2]]
    assert batch.logprobs.tolist() == batch.old.tolist() == [[0, -1, -1, 0, 0], [0, 0, -1, -1, -1]]
    assert not batch.reference.any()
    assert not batch.penalty.any()


@pytest.mark.parametrize(
    ("per", "expected"),  # two tasks: answers of 1 and 3 tokens, and of 4 and 0 tokens; at most 10 tokens
    [
        ("token", [1 / 8, 1 / 8, 1 / 8, 1 / 8]),
        ("sequence", [1 / 4, 1 / 12, 1 / 16, 0]),
        ("prompt", [1 / 8, 1 / 8, 1 / 8, 1 / 8]),
        ("constant", [1 / 40, 1 / 40, 1 / 40, 1 / 40]),
    ],
)
def test_weights_by_hand(sample, per, expected):
    assert token_weights([1, 3, 4, 0], [0, 0, 1, 1], per, 10) == pytest.approx(expected)


def test_per_prompt_counts_every_task_the_same(sample):
    weights = token_weights([1, 9], [0, 1], "prompt", 10)
    assert [weights[0] * 1, weights[1] * 9] == pytest.approx([0.5, 0.5])


def test_what_could_not_be_judged_leaves_its_group(sample):
    group = Group(Task("0", "", ""), [sample(1, 1, 0.5), sample(1, 1, None)])
    assert [s.reward for s in group.judged()] == [0.5]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    ranks=st.integers(1, 4),
    budget=st.integers(1, 200),
)
def test_every_sample_is_in_one_micro_batch_within_the_budget(lengths, ranks, budget):
    plan = micro_batches(lengths, ranks, budget)
    assert sorted(i for rank in plan for rows in rank for i in rows) == list(range(len(lengths)))
    assert len({len(rank) for rank in plan}) == 1, "under ZeRO-3 every rank makes as many forward passes"
    for rows in (rows for rank in plan for rows in rank if len(rows) > 1):
        assert max(lengths[i] for i in rows) * len(rows) <= budget


def test_ranks_get_like_shares_and_little_padding():
    lengths = np.random.default_rng(0).lognormal(4, 0.8, 512).astype(int).clip(1, 1000).tolist()
    plan = micro_batches(lengths, 2, 8192)
    shares = [sum(lengths[i] for rows in rank for i in rows) for rank in plan]
    assert max(shares) / min(shares) < 1.01
    padded = sum(max(lengths[i] for i in rows) * len(rows) for rank in plan for rows in rank if rows)
    assert sum(lengths) / padded > 0.95
