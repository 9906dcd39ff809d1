"""Each method against numbers worked by hand, off-policy ones too."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlreason.algorithms import ADVANTAGES, FILTERS, LOSSES
from rlreason.types import Batch, Group, Task, micro_batches, token_weights


@pytest.mark.parametrize(
    ("name", "rewards", "expected"),
    [
        ("grpo", [0, 1, 1, 0], [-1, 1, 1, -1]),  # mean 1/2, std 1/2
        ("grpo", [0, 0, 0, 1], [-0.57735, -0.57735, -0.57735, 1.73205]),  # mean 1/4, std √3/4
        ("dr_grpo", [0, 0, 0, 1], [-0.25, -0.25, -0.25, 0.75]),
        ("rloo", [0, 0, 0, 1], [-1 / 3, -1 / 3, -1 / 3, 1]),  # minus the mean of the other three
        *[(name, [0.3, 0.3, 0.3], [0, 0, 0]) for name in ADVANTAGES],
        *[(name, [0.7], [0]) for name in ADVANTAGES],
    ],
)
def test_advantages_by_hand(name, rewards, expected):
    assert ADVANTAGES[name](np.array(rewards, float)) == pytest.approx(expected, abs=1e-4)


def one_token(advantage: float, old: float = -1.0) -> Batch:
    """Two tokens: a prompt's, and one that was sampled with log-probability `old`."""
    t = torch.tensor
    return Batch(t([[1, 2]]), t([[0.0, 1.0]]), t([[0.0, 1.0]]), t([[0.0, advantage]]), t([[0.0, old]]))


@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "loss"),  # low = 0.2, high = 0.3, sampled with log-probability -1
    [
        ("clip", 1.1, 1, -1.1), ("clip", 2.0, 1, -1.3), ("clip", 0.5, 1, -0.5),  # clipped only where it would gain
        ("clip", 0.9, -1, 0.9), ("clip", 2.0, -1, 2.0), ("clip", 0.5, -1, 0.8),
        ("cispo", 1.1, 1, -1.1 * (math.log(1.1) - 1)), ("cispo", 2.0, 1, -1.3 * (math.log(2) - 1)),
        ("cispo", 0.5, -1, 0.8 * (math.log(0.5) - 1)),
        ("gspo", 1.1, 1, -1.1), ("gspo", 2.0, 1, -1.3), ("gspo", 0.5, -1, 0.8),
        ("nll", 2.0, 1, 1 - math.log(2)), ("nll", 0.5, -1, 1 + math.log(2)),
    ],
)  # fmt: skip
def test_losses_by_hand(name, ratio, advantage, loss):
    batch = one_token(advantage)
    logp = torch.tensor([[0.0, -1 + math.log(ratio)]])
    assert LOSSES[name](logp, batch, 0.2, 0.3)[0, 1].item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "gradient"),  # of the loss by logp, same bounds
    [
        ("clip", 2.0, 1, 0), ("clip", 2.0, -1, 2.0), ("clip", 0.5, -1, 0), ("clip", 0.5, 1, -0.5),
        ("cispo", 2.0, 1, -1.3), ("cispo", 0.5, -1, 0.8),  # clipped tokens go on learning
        ("nll", 2.0, 1, -1),
    ],
)  # fmt: skip
def test_gradients_by_hand(name, ratio, advantage, gradient):
    logp = torch.tensor([[0.0, -1 + math.log(ratio)]], requires_grad=True)
    LOSSES[name](logp, one_token(advantage), 0.2, 0.3)[0, 1].backward()
    assert logp.grad[0, 1].item() == pytest.approx(gradient, abs=1e-6)


def test_gspo_has_one_ratio_per_sequence():
    """Ratios 2 and 1/2 of two tokens cancel: the sequence's is 1, and nothing is clipped."""
    t = torch.tensor
    batch = Batch(t([[1, 2, 3]]), t([[0.0, 1, 1]]), t([[0.0, 1, 1]]), t([[0.0, 1, 1]]), t([[0.0, -1, -1]]))
    logp = t([[0.0, -1 + math.log(2), -1 - math.log(2)]])
    assert LOSSES["gspo"](logp, batch, 0.1, 0.1)[0, 1:].tolist() == pytest.approx([-1, -1])


def made(sample, lengths: list[int], seed: int = 0) -> tuple[list[list], list[float]]:
    """Two groups of samples with random log-probabilities, and an advantage each."""
    rng = np.random.default_rng(seed)
    samples = [sample(3, n, reward=0.0) for n in lengths]
    for s in samples:
        s.logprobs[s.mask] = -rng.random(s.mask.sum())
    half = max(1, len(samples) // 2)
    return [samples[:half], samples[half:]], rng.standard_normal(len(samples)).tolist()


def gradient(name: str, samples: list, advantages: list, weights: list, cuts: list[list[int]]) -> torch.Tensor:
    """By the log-probability of every token of every sample, [N, 70]; the policy is 0.3 off the sampler's."""
    policy = torch.full((len(samples), 70), -0.8, requires_grad=True)
    for rows in cuts:
        if rows:
            batch = Batch.collate([samples[i] for i in rows], [advantages[i] for i in rows], [weights[i] for i in rows])
            batch = Batch(*map(torch.from_numpy, batch))
            logp = policy[rows, : batch.tokens.shape[1]]
            (LOSSES[name](logp, batch, 0.2, 0.28) * batch.weight).sum().backward()
    return policy.grad


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 60), min_size=2, max_size=12),
    ranks=st.integers(1, 3),
    budget=st.integers(1, 300),
    name=st.sampled_from([*LOSSES]),
    per=st.sampled_from(["token", "sequence", "prompt", "constant"]),
)
def test_any_cut_into_micro_batches_and_ranks_gives_the_same_gradient(sample, lengths, ranks, budget, name, per):
    groups, advantages = made(sample, lengths)
    samples = [s for group in groups for s in group]
    weights = token_weights(groups, per, 64)
    plan = micro_batches([len(s.tokens) for s in samples], ranks, budget)
    whole = gradient(name, samples, advantages, weights, [list(range(len(samples)))])
    cut = gradient(name, samples, advantages, weights, [rows for rank in plan for rows in rank])
    assert torch.allclose(whole, cut, atol=1e-6)
    for i, s in enumerate(samples):
        trained = torch.zeros(70, dtype=torch.bool)
        trained[: len(s.mask)] = torch.from_numpy(s.mask)
        assert (cut[i][~trained] == 0).all(), "a prompt's token or padding has a gradient"


@pytest.mark.parametrize("name", ["clip", "cispo", "gspo"])
def test_on_policy_every_loss_has_the_policy_gradient(sample, name):
    groups, advantages = made(sample, [5, 9, 2, 7])
    samples = [s for group in groups for s in group]
    batch = Batch(*map(torch.from_numpy, Batch.collate(samples, advantages, [1.0] * 4)))
    logp = batch.logprobs.clone().requires_grad_()
    (LOSSES[name](logp, batch, 0.2, 0.2) * batch.weight).sum().backward()
    assert torch.allclose(logp.grad, -batch.advantage, atol=1e-5)


@pytest.mark.parametrize(
    ("rewards", "all_", "differ"),
    [([0, 1], True, True), ([1, 1], True, False), ([1], True, False), ([1, None], True, False), ([None], False, False)],
)
def test_filters(sample, rewards, all_, differ):
    group = Group(Task("0", "", ""), [sample(1, 1, r) for r in rewards])
    assert (FILTERS["all"](group), FILTERS["differ"](group)) == (all_, differ)
