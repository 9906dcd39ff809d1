"""Credit against numbers worked by hand; and the columns of a batch, which are what the learner sees of it."""

import math

import numpy as np
import pytest

from rlreason.algorithms import ADVANTAGES, Scores
from rlreason.algorithms.columns import columns, cut, score
from rlreason.config import AlgorithmConfig
from rlreason.rewards.length import overlong_penalty
from rlreason.types import Batch, Group, Task

S2, S3 = math.sqrt(2), math.sqrt(3)
TABLE = [  # name, options, groups of rewards, advantages
    ("grpo", {}, [[0, 1, 1, 0]], [-S3 / 2, S3 / 2, S3 / 2, -S3 / 2]),  # mean 1/2, std √(1/3)
    ("grpo", {}, [[0, 0, 0, 1]], [-0.5, -0.5, -0.5, 1.5]),  # mean 1/4, std 1/2
    ("grpo", {"eps": 0.5}, [[0, 0, 0, 1]], [-0.25, -0.25, -0.25, 0.75]),
    ("grpo", {}, [[0, 0, 0, 1], [3, 5]], [-0.5, -0.5, -0.5, 1.5, -1 / S2, 1 / S2]),  # each group by itself
    ("dr_grpo", {}, [[0, 0, 0, 1], [3, 5]], [-0.25, -0.25, -0.25, 0.75, -1, 1]),
    ("rloo", {}, [[0, 0, 0, 1]], [-1 / 3, -1 / 3, -1 / 3, 1]),  # minus the mean of the other three
    ("maxrl", {}, [[0, 0, 0, 1], [1, 1, 0, 1]], [-1, -1, -1, 3, 1 / 3, 1 / 3, -1, 1 / 3]),
    ("maxrl", {}, [[0, 0], [-1, 0]], [0, 0, 0, 0]),
    # pass@2 of one right in four: P = 1 - C(3,2)/C(4,2) = 1/2, σ = 1/2; wrong: 1 - C(2,1)/C(3,1) - 1/2 = -1/6
    ("passk", {"k": 2}, [[0, 0, 0, 1]], [-1 / 3, -1 / 3, -1 / 3, 1]),
    # two right: P = 1 - 1/6 = 5/6, σ = √5/6; right: 1/6; wrong: 1 - 1/3 - 5/6 = -1/6
    ("passk", {"k": 2}, [[0, 1, 1, 0]], [-1 / math.sqrt(5), 1 / math.sqrt(5), 1 / math.sqrt(5), -1 / math.sqrt(5)]),
    ("passk", {"k": 2}, [[0, 1, 1, 1]], [0, 0, 0, 0]),  # any two of them pass: nothing to learn for pass@2
    ("passk", {"k": 1}, [[0, 1, 1, 0]], [-1, 1, 1, -1]),  # pass@1 is (R - mean) / std
    ("passk", {"k": 8}, [[0, 1]], [0, 0]),  # k = 2 then, which always passes
    ("passk", {"k": 1, "correct": 2.0}, [[1, 3]], [-1, 1]),
    ("passk_best", {}, [[0, 0, 0, 1]], [0, 0, 0, 2]),  # (1 - 0) / (1/2)
    ("passk_best", {"scale": False}, [[3, 1, 7, 5]], [0, 0, 2, 0]),
    ("passk_best", {}, [[1, 1, 0]], [0, 0, 0]),  # the second is as good
    ("batch", {}, [[0, 2], [4, 6]], [-math.sqrt(0.15), math.sqrt(0.15)] * 2),  # std of 0, 2, 4, 6 is √(20/3)
    ("batch", {"std": "advantages"}, [[0, 2], [4, 6]], [-S3 / 2, S3 / 2] * 2),  # std of -1, 1, -1, 1 is √(4/3)
    ("reinforce_pp", {}, [[0, 2], [4, 6]], [-3 / math.sqrt(20 / 3), -1 / math.sqrt(20 / 3), 1 / math.sqrt(20 / 3),
                                            3 / math.sqrt(20 / 3)]),
    ("reinforce_pp_baseline", {}, [[0, 2], [4, 6]], [-S3 / 2, S3 / 2] * 2),
    ("gdpo", {}, [[0, 2], [4, 6]], [-S3 / 2, S3 / 2] * 2),  # ±1/√2 within the groups, whitened over the batch
    ("raw", {}, [[0, 2], [4, 6]], [0, 2, 4, 6]),
    ("none", {}, [[0, 2], [4, 6]], [0, 0, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "groups", "expected"), TABLE)
def test_credit_by_hand(name, options, groups, expected):
    assert ADVANTAGES[name](Scores.of(*groups), **options) == pytest.approx(expected, abs=2e-5)


def test_every_credit_is_in_the_table():
    assert {row[0] for row in TABLE} == set(ADVANTAGES)


ABSOLUTE = ("raw", "reinforce_pp")  # these do not compare within a group


@pytest.mark.parametrize("name", [*ADVANTAGES])
@pytest.mark.parametrize("groups", [[[0.3, 0.3, 0.3]], [[0.7]], [[0.0]], [[0.0, 0.0], [0.5, 0.5]], []], ids=str)
def test_a_group_with_nothing_to_compare_has_no_credit(name, groups):
    found = ADVANTAGES[name](Scores.of(*groups))
    assert len(found) == sum(map(len, groups))
    assert np.isfinite(found).all()
    if name not in ABSOLUTE:
        assert found == pytest.approx(np.zeros(len(found)), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name not in ("raw", "reinforce_pp")])
def test_large_equal_rewards_have_no_credit_from_rounding(name):
    assert (ADVANTAGES[name](Scores.of([1e9 + 0.1] * 7)) == 0).all()


def test_reinforce_pp_counts_tokens():
    """Rewards 0 and 4, of 3 tokens and 1: mean 1, variance (3 · 1 + 9) / 3 = 4."""
    s = Scores.of([0, 4])._replace(length=np.array([3, 1]))
    assert ADVANTAGES["reinforce_pp"](s) == pytest.approx([-0.5, 1.5])


def test_gdpo_hears_a_small_reward_beside_a_large_one():
    """Two rewards that rank opposite ways, the scale of one ten thousand times the other's: the weights decide."""
    s = Scores.of([0, 100])
    parts = {"big": np.array([0.0, 100]), "small": np.array([0.01, 0.0])}
    ones = np.ones(2)
    for small, first in ((0.5, -1 / S2), (2.0, 1 / S2)):
        weighted = s._replace(parts=parts, weights={"big": ones, "small": small * ones})
        assert ADVANTAGES["gdpo"](weighted) == pytest.approx([first, -first], abs=1e-5)
    where = parts | {"elsewhere": np.array([np.nan, np.nan])}  # a reward that this task does not have
    weights = {"big": ones, "small": 0 * ones, "elsewhere": 0 * ones}
    assert ADVANTAGES["gdpo"](s._replace(parts=where, weights=weights)) == pytest.approx([-1 / S2, 1 / S2], abs=1e-5)


def test_gdpo_over_tokens():
    s = Scores.of([0, 4])._replace(length=np.array([3, 1]))  # ±1/√2: mean -1/√8, variance (3/8 + 9/8) / 3 = 1/2
    assert ADVANTAGES["gdpo"](s, over="tokens") == pytest.approx([-0.5, 1.5], abs=1e-5)


@pytest.mark.parametrize(
    ("length", "buffer", "penalty"),  # limit 100
    [(0, 20, 0), (80, 20, 0), (81, 20, -0.05), (90, 20, -0.5), (100, 20, -1), (120, 20, -1), (90, 0, -0.5), (50, 100, -0.5)],
)
def test_soft_overlong_penalty(length, buffer, penalty):
    assert overlong_penalty(length, 100, buffer) == pytest.approx(penalty)


# ---- columns ----


def group(sample, *rewards, lengths=None, weights=None, truncated=()) -> Group:
    lengths = lengths or [2] * len(rewards)
    samples = [sample(1, n, r) for n, r in zip(lengths, rewards, strict=True)]
    for s, r in zip(samples, rewards, strict=True):
        s.parts = {"exact": r}
    for i in truncated:
        samples[i].truncated = True
    return Group(Task("0", "", "", reward=weights), samples)


def learnt(groups, algorithm, weights, limit, reference=None):
    """The columns of a batch with one optimizer step."""
    return columns(groups, cut(groups, 1, algorithm.overlong), algorithm, weights, limit, reference)


def test_a_sample_that_could_not_be_judged_takes_no_part(sample):
    groups = [group(sample, 0.0, None, 1.0), group(sample, None, 5.0)]
    own = learnt(groups, AlgorithmConfig(advantage="dr_grpo"), {"exact": 1.0}, 10)
    assert own == {"advantage": [-0.5, 0.5, 0.0], "weight": [1 / 6] * 3}


def test_truncated_samples_count_for_the_baseline_alone_under_mask(sample):
    groups = [group(sample, 0.0, 1.0, truncated=[1]), group(sample, 1.0)]
    own = learnt(groups, AlgorithmConfig(advantage="dr_grpo", overlong="mask"), {"exact": 1.0}, 10)
    assert own == {"advantage": [-0.5, 0.5, 0.0], "weight": [1 / 4, 0.0, 1 / 4]}


def test_optimizer_steps_share_the_groups_and_have_denominators_of_their_own(sample):
    groups = [group(sample, 0.0, 1.0), group(sample, 1.0, lengths=[5]), group(sample, None, 3.0)]
    parts = cut(groups, 2)
    assert parts == [[0, 1, 3], [2]]
    own = columns(groups, parts, AlgorithmConfig(), {"exact": 1.0}, 10)
    assert own["weight"] == [1 / 6, 1 / 6, 1 / 5, 1 / 6]


def test_a_soft_overlong_penalty_is_part_of_the_reward(sample):
    """Limit 10, buffer 2: an answer of 9 tokens loses 0.5."""
    algorithm = AlgorithmConfig(advantage="dr_grpo", overlong="soft", overlong_buffer=2)
    scores = score([group(sample, 1.0, 1.0, lengths=[5, 9])], algorithm, {"exact": 1.0}, 10)
    assert scores.reward.tolist() == [1.0, 0.5]
    assert scores.parts["overlong"].tolist() == [0.0, -0.5]


def test_kl_in_the_reward_is_that_of_the_whole_answer(sample):
    g = group(sample, 1.0, 1.0)
    for s in g.samples:
        s.logprobs[s.mask] = -1.0
    reference = [np.array([7.0, -1.5, -2.0], np.float32), np.array([7.0, -1.0, -1.0], np.float32)]
    own = learnt([g], AlgorithmConfig(advantage="raw", kl_reward=0.1), {"exact": 1.0}, 10, reference)
    assert own["advantage"] == pytest.approx([1 - 0.1 * 1.5, 1.0])


def test_teacher_credit_is_the_reverse_kl_token_by_token(sample):
    """On-policy distillation: log teacher - log policy, whatever the answer earns."""
    g = group(sample, 1.0, 0.0)
    for s in g.samples:
        s.logprobs[s.mask] = -1.0
    reference = [np.array([7.0, -0.5, -2.0], np.float32), np.array([7.0, -1.0, -3.0], np.float32)]
    own = learnt([g], AlgorithmConfig(advantage="none", kl_credit=1.0), {"exact": 1.0}, 10, reference)
    batch = Batch.collate(g.samples, **own)
    assert batch.advantage.tolist() == [[0, 0.5, -1.0], [0, 0, -2.0]]
    assert batch.reference.tolist() == [[0, -0.5, -2.0], [0, -1.0, -3.0]]


def test_clip_cov_takes_the_gradient_of_a_token_and_kl_cov_adds_a_penalty(sample):
    g = group(sample, 1.0, 0.0, lengths=[2, 1])
    g.samples[0].logprobs[:] = [0.0, -0.1, -9.0]
    g.samples[1].logprobs[:] = [0.0, -9.0]
    options = {"low": 0.5, "high": 9.0}
    own = learnt([g], AlgorithmConfig(covariance="clip_cov", covariance_options=options), {"exact": 1.0}, 10)
    assert [column.tolist() for column in own["weight"]] == [pytest.approx([1 / 3, 0, 1 / 3]), pytest.approx([1 / 3, 1 / 3])]
    own = learnt([g], AlgorithmConfig(covariance="kl_cov", covariance_options={"coefficient": 0.5}), {"exact": 1.0}, 10)
    assert [column.tolist() for column in own["penalty"]] == [[0, 0.5, 0], [0, 0]]


@pytest.mark.parametrize("name", [*ADVANTAGES])
def test_a_step_of_degenerate_groups_has_numbers(sample, name):
    """All truncated, empty answers, one sample, all equal: every column is finite."""
    groups = [
        group(sample, 0.0, 0.0, truncated=[0, 1]),
        group(sample, 1.0, 0.0, lengths=[0, 0]),
        group(sample, 1.0),
        group(sample, 0.5, 0.5),
    ]
    algorithm = AlgorithmConfig(advantage=name, overlong="soft", covariance="kl_cov")
    own = learnt(groups, algorithm, {"exact": 1.0}, 10)
    batch = Batch.collate([s for g in groups for s in g.samples], **own)
    assert all(np.isfinite(column).all() for column in batch)


def test_recorded_answers_all_count_the_same(sample):
    assert learnt([group(sample, 0.0, 1.0)], AlgorithmConfig(answers="recorded", loss="nll"), {}, 10) == {
        "advantage": [1.0, 1.0],
        "weight": [1 / 4, 1 / 4],
    }
