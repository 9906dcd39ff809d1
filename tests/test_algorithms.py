"""Each loss, correction and estimator against numbers worked by hand, off-policy ones too; and what all have in common."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlreason.algorithms import CORRECTIONS, COVARIANCE, FILTERS, KL, LOSSES, objective
from rlreason.algorithms.covariance import covariance
from rlreason.algorithms.mismatch import diagnostics, off_policy_mask, summary
from rlreason.config import AlgorithmConfig
from rlreason.types import Batch, Group, Task, micro_batches, token_weights

t = torch.tensor
E = math.e


def rows(mask, advantage, old, **more) -> Batch:
    """A batch from lists [N, T]; what is not said is 0, and weights are 1 where the mask is."""
    mask = t(mask).float()
    zero = torch.zeros_like(mask)
    given = {"advantage": t(advantage).float(), "old": t(old).float(), **{k: t(v).float() for k, v in more.items()}}
    blank = dict.fromkeys(Batch._fields, zero) | {"tokens": zero.long(), "mask": mask, "weight": mask, "logprobs": given["old"]}
    return Batch(**(blank | given))


def one_token(advantage: float, old: float = -1.0, **more) -> Batch:
    """A prompt's token, and one that had log-probability `old`."""
    return rows([[0, 1]], [[0, advantage]], [[0, old]], **more)


LOSS_TABLE = [  # name, options, ratio, advantage, loss, gradient by log p; the token had log-probability -1
    ("clip", {"low": 0.2, "high": 0.3}, 1.1, 1, -1.1, -1.1),  # inside both bounds
    ("clip", {"low": 0.2, "high": 0.3}, 2.0, 1, -1.3, 0),  # above, and would gain: clipped
    ("clip", {"low": 0.2, "high": 0.3}, 0.5, 1, -0.5, -0.5),  # below, and would lose: not clipped
    ("clip", {"low": 0.2, "high": 0.3}, 0.9, -1, 0.9, 0.9),
    ("clip", {"low": 0.2, "high": 0.3}, 2.0, -1, 2.0, 2.0),
    ("clip", {"low": 0.2, "high": 0.3}, 0.5, -1, 0.8, 0),
    ("clip", {"dual": 3.0}, 5.0, -2, 6.0, 0),  # dual clip: at most 3 · |A|
    ("clip", {"dual": 3.0}, 2.0, -2, 4.0, 4.0),
    ("clip", {"dual": 3.0}, 5.0, 2, -2.56, 0),  # only for a negative advantage
    ("clip", {"low": 10.0, "high": 10.0}, 8.0, 1, -8.0, -8.0),  # R1's ε of 10
    ("cispo", {"low": 0.2, "high": 0.3}, 1.1, 1, -1.1 * (math.log(1.1) - 1), -1.1),
    ("cispo", {"low": 0.2, "high": 0.3}, 2.0, 1, -1.3 * (math.log(2) - 1), -1.3),  # clipped tokens go on learning
    ("cispo", {"low": 0.2, "high": 0.3}, 0.5, -1, 0.8 * (math.log(0.5) - 1), 0.8),
    ("cispo", {}, 8.0, 1, -5 * (math.log(8) - 1), -5),  # by default at most 5, at least 0
    ("cispo", {}, 0.1, -1, 0.1 * (math.log(0.1) - 1), 0.1),
    ("gspo", {"low": 0.2, "high": 0.3}, 1.1, 1, -1.1, -1.1),  # one token is its own sequence
    ("gspo", {"low": 0.2, "high": 0.3}, 2.0, 1, -1.3, 0),
    ("gspo", {"low": 0.2, "high": 0.3}, 0.5, -1, 0.8, 0),
    ("gspo", {}, 1.1, 1, -1.0004, 0),
    ("gmpo", {}, 1.1, 1, -1.1, -1.1),
    ("gmpo", {}, 2.0, 1, -math.exp(0.4), 0),
    ("gmpo", {}, 0.5, 1, -0.5, -0.5),
    ("gmpo", {}, 0.5, -1, math.exp(-0.4), 0),
    ("gmpo", {}, 2.0, -1, 2.0, 2.0),
    ("sapo", {}, 1.0, 1, -2.0, -1.0),  # 4/τ · σ(0) = 2; the gate's slope is 1 there
    ("sapo", {}, 3.0, 1, -4 / (1 + math.exp(-2)), -4 * 3 * math.exp(-2) / (1 + math.exp(-2)) ** 2),
    ("sapo", {"tau_neg": 2.0}, 3.0, -1, 2 / (1 + math.exp(-4)), 4 * 3 * math.exp(-4) / (1 + math.exp(-4)) ** 2),
    ("dppo", {}, 1.2, 1, -1.2 * (math.log(1.2) - 1), -1.2),  # p moves by 0.2 / e = 0.07
    ("dppo", {}, 2.0, 1, 0, 0),  # by 1 / e = 0.37 > 0.2, in A's direction: masked
    ("dppo", {}, 2.0, -1, 2 * (math.log(2) - 1), 2.0),  # against it: kept
    ("dppo", {}, 0.4, -1, 0, 0),  # by -0.6 / e = -0.22
    ("dppo", {}, 0.4, 1, -0.4 * (math.log(0.4) - 1), -0.4),
    ("dppo", {"cap": 1.5}, 2.0, -1, 1.5 * (math.log(2) - 1), 1.5),
    ("nll", {}, 2.0, 1, 1 - math.log(2), -1),
    ("nll", {}, 0.5, -1, 1 + math.log(2), -1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "ratio", "advantage", "loss", "gradient"), LOSS_TABLE)
def test_losses_and_their_gradients_by_hand(name, options, ratio, advantage, loss, gradient):
    logp = t([[0.0, -1 + math.log(ratio)]], requires_grad=True)
    result = LOSSES[name](logp, one_token(advantage), **options)[0, 1]
    result.backward()
    assert result.item() == pytest.approx(loss, abs=1e-5)
    assert logp.grad[0, 1].item() == pytest.approx(gradient, abs=1e-5)


def test_every_loss_is_in_the_table():
    assert {row[0] for row in LOSS_TABLE} == set(LOSSES)


def test_gspo_has_one_ratio_per_sequence():
    """Ratios 2 and 1/2 of two tokens cancel: the sequence's is 1, and nothing is clipped."""
    batch = rows([[0, 1, 1]], [[0, 1, 1]], [[0, -1, -1]])
    logp = t([[0.0, -1 + math.log(2), -1 - math.log(2)]])
    assert LOSSES["gspo"](logp, batch, 0.1, 0.1)[0, 1:].tolist() == pytest.approx([-1, -1])


def test_gmpo_clips_tokens_before_their_mean():
    """log-ratios 1 and 0 with A > 0: the first is cut to 0.4, so the ratio is e^0.2; every token of the row has it."""
    batch = rows([[0, 1, 1]], [[0, 1, 1]], [[0, -1, -1]])
    logp = t([[0.0, 0.0, -1.0]])
    assert LOSSES["gmpo"](logp, batch)[0].tolist() == pytest.approx([0, -math.exp(0.2), -math.exp(0.2)])


def test_a_ratio_beyond_all_bounds_is_finite():
    for name in LOSSES:
        for far in (-200.0, 200.0):
            logp = t([[0.0, far]], requires_grad=True)
            LOSSES[name](logp, one_token(-1.0, old=0.0)).sum().backward()
            assert torch.isfinite(logp.grad).all(), name


# ---- what all losses have in common ----


def made(sample, lengths: list[int], seed: int = 0) -> tuple[list[list], dict[str, list]]:
    """Two groups of samples with random log-probabilities, and columns to go with them."""
    rng = np.random.default_rng(seed)
    samples = [sample(3, n, reward=0.0) for n in lengths]
    for s in samples:
        s.logprobs[s.mask] = -rng.random(s.mask.sum())
    half = max(1, len(samples) // 2)
    own = {
        "advantage": rng.standard_normal(len(samples)).tolist(),
        "old": [s.logprobs - 0.2 * rng.random(len(s.tokens)) for s in samples],
        "reference": [-rng.random(len(s.tokens)) for s in samples],
        "penalty": [(rng.random(len(s.tokens)) < 0.2).astype(float) for s in samples],
    }
    return [samples[:half], samples[half:]], own


def gradient(algorithm: AlgorithmConfig, samples: list, own: dict, cuts: list[list[int]]) -> tuple[torch.Tensor, dict]:
    """By the log-probability of every token of every sample, [N, 70]; the policy is 0.3 off the sampler's. And sums."""
    policy = torch.full((len(samples), 70), -0.8, requires_grad=True)
    sums: dict[str, float] = {}
    for cut in cuts:
        if cut:
            batch = Batch.collate([samples[i] for i in cut], **{k: [v[i] for i in cut] for k, v in own.items()})
            batch = Batch(*map(torch.from_numpy, batch))
            logp = policy[cut, : batch.tokens.shape[1]]
            per_token, seen = objective(logp, batch, algorithm, entropy=logp.exp())
            (per_token * batch.weight).sum().backward()
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in seen.items()}
    return policy.grad, sums


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 60), min_size=2, max_size=12),
    ranks=st.integers(1, 3),
    budget=st.integers(1, 300),
    loss=st.sampled_from([*LOSSES]),
    correction=st.sampled_from([*CORRECTIONS]),
    kl=st.sampled_from([*KL]),
    per=st.sampled_from(["token", "sequence", "prompt", "constant"]),
)
def test_any_cut_into_micro_batches_and_ranks_gives_the_same_gradient(
    sample, lengths, ranks, budget, loss, correction, kl, per
):
    groups, own = made(sample, lengths)
    samples = [s for group in groups for s in group]
    numbers = [number for number, group in enumerate(groups) for _ in group]
    own["weight"] = token_weights([s.length for s in samples], numbers, per, 64)
    algorithm = AlgorithmConfig(
        loss=loss, correction=correction, kl=kl, kl_loss=0.1, entropy=0.01, covariance="kl_cov", off_policy_mask=0.1
    )
    plan = micro_batches([len(s.tokens) for s in samples], ranks, budget)
    whole, sums = gradient(algorithm, samples, own, [list(range(len(samples)))])
    cut, parts = gradient(algorithm, samples, own, [rows for rank in plan for rows in rank])
    assert torch.allclose(whole, cut, atol=1e-6)
    assert parts == pytest.approx(sums, rel=1e-4, abs=1e-4)
    for i, s in enumerate(samples):
        trained = torch.zeros(70, dtype=torch.bool)
        trained[: len(s.mask)] = torch.from_numpy(s.mask)
        assert (cut[i][~trained] == 0).all(), "a prompt's token or padding has a gradient"


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "nll"])
@pytest.mark.parametrize("correction", [*CORRECTIONS])
def test_on_policy_every_loss_has_the_policy_gradient(sample, loss, correction):
    groups, own = made(sample, [5, 9, 2, 7])
    samples = [s for group in groups for s in group]
    batch = Batch(*map(torch.from_numpy, Batch.collate(samples, advantage=own["advantage"], weight=[1.0] * 4)))
    logp = batch.logprobs.clone().requires_grad_()
    per_token, _ = objective(logp, batch, AlgorithmConfig(loss=loss, correction=correction))
    # gmpo's row of equal losses sums to the sequence's, and the others' tokens each stand for themselves
    scale = 1 / batch.mask.sum(1, keepdim=True) if loss == "gmpo" else 1
    (per_token * batch.weight * scale).sum().backward()
    assert torch.allclose(logp.grad, -batch.advantage * scale, atol=1e-5)


# ---- corrections ----

CORRECTION_TABLE = [  # name, options, ratios of the tokens of a sequence, weights
    ("none", {}, [4, 0.25], [1, 1]),
    ("token_tis", {}, [0.5, 1.5, 4], [0.5, 1.5, 2]),
    ("token_tis", {"cap": 5.0}, [0.5, 4, 8], [0.5, 4, 5]),
    ("sequence_tis", {}, [0.5, 1.5], [0.75, 0.75]),
    ("sequence_tis", {}, [2, 1.5], [2, 2]),  # 3, cut at 2
    ("token_mis", {}, [0.01, 2, 4], [0.01, 2, 0]),
    ("sequence_mis", {}, [2, 1.25], [2.5, 2.5]),
    ("sequence_mis", {}, [2, 2], [0, 0]),  # 4 > 3
    ("sequence_mis", {"low": 0.5}, [0.5, 0.5], [0, 0]),
    ("icepop", {}, [0.4, 0.6, 4, 6], [0, 0.6, 4, 0]),
    ("geometric", {"low": 0.9, "high": 1.1}, [2, 0.5], [1, 1]),  # the mean is 1
    ("geometric", {"low": 0.9, "high": 1.1}, [2, 0.8], [0, 0]),  # √1.6 = 1.26
    ("geometric", {}, [1.0005, 1.0], [1, 1]),
    ("geometric", {}, [1.01, 1.0], [0, 0]),
    ("geometric", {"low": 0.9, "high": 1.1, "cap": 1.5}, [2, 0.5], [1.5, 0.5]),
]


@pytest.mark.parametrize(("name", "options", "ratios", "weights"), CORRECTION_TABLE)
def test_corrections_by_hand(name, options, ratios, weights):
    log_ratio = t([[0.0, *map(math.log, ratios), 0.0]])  # a prompt's token before, padding after
    mask = t([[0.0, *[1.0] * len(ratios), 0.0]])
    found = CORRECTIONS[name](log_ratio, mask, **options)
    assert found.shape == mask.shape
    assert found[0, 1:-1].tolist() == pytest.approx(weights, rel=1e-5)


def test_every_correction_is_in_the_table():
    assert {row[0] for row in CORRECTION_TABLE} == set(CORRECTIONS)


def test_the_off_policy_mask_drops_bad_answers_that_the_policy_would_not_give():
    """Mean log(μ / π): 0.75 in the first three rows, 0.25 in the last."""
    logp = t([[0.0, -2.0, -1.5]] * 3 + [[0.0, -1.0, -1.5]])
    mask, sampler = t([[0.0, 1, 1]] * 4), t([[0.0, -1.0, -1.0]] * 4)
    advantage = t([[-1.0], [1.0], [0.0], [-1.0]]).expand(4, 3)
    assert off_policy_mask(advantage, logp, sampler, mask, 0.5)[:, 1].tolist() == [0, 1, 1, 1]


def test_a_correction_multiplies_the_loss_and_has_no_gradient():
    """old / μ = 4, cut at 2; π / old = 1.1: loss -2 · 1.1 and gradient the same."""
    batch = one_token(1.0, old=-1.0, logprobs=[[0.0, -1 - math.log(4)]])
    logp = t([[0.0, -1 + math.log(1.1)]], requires_grad=True)
    per_token, sums = objective(logp, batch, AlgorithmConfig())
    per_token[0, 1].backward()
    assert per_token[0, 1].item() == pytest.approx(-2.2, abs=1e-5)
    assert logp.grad[0, 1].item() == pytest.approx(-2.2, abs=1e-5)
    assert sums["gap"].item() == pytest.approx(math.log(4.4))  # the policy that is trained, against the sampler


def test_diagnostics_by_hand():
    """Two sequences: ratios 2 and 1/2, and one of 2."""
    mask = t([[0.0, 1, 1], [0, 1, 0]])
    sampler = t([[0.0, -1, -1], [0, -1, 0]])
    old = sampler + t([[9.0, math.log(2), -math.log(2)], [9, math.log(2), 9]])
    weight = t([[0.0, 1, 0], [1, 1, 1]])
    sums = {k: v.item() for k, v in diagnostics(old, sampler, mask, weight).items()}
    ln2 = math.log(2)
    assert summary(sums) == pytest.approx(
        {
            "policy_gap": ln2,
            "mismatch/kl": -ln2 / 3,
            "mismatch/k3": ((2 - ln2 - 1) + (0.5 + ln2 - 1) + (2 - ln2 - 1)) / 3,
            "mismatch/ppl_ratio": (1 + 0.5) / 2,
            "mismatch/chi2_token": (4 + 0.25 + 4) / 3 - 1,
            "mismatch/chi2_sequence": (1 + 4) / 2 - 1,
            "mismatch/masked": 1 / 3,
        },
        abs=1e-6,
    )


# ---- KL: value and gradient, by enumeration of a vocabulary ----


@pytest.fixture(scope="module")
def two_policies():
    """Logits of π, a leaf, and the log-probabilities of ref over 7 tokens; float64."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, generator=g).requires_grad_()
    return logits, torch.randn(7, dtype=torch.float64, generator=g).log_softmax(-1)


def true_gradient(divergence, logits):
    (found,) = torch.autograd.grad(divergence(logits.log_softmax(-1)), logits)
    return found


@pytest.mark.parametrize("name", [*KL])
def test_the_gradient_of_each_kl_estimator_is_what_its_docstring_says(two_policies, name):
    """E over y ~ π of the estimator's own gradient, against that of the true divergence. What the docstring says: the
    name of the divergence whose gradient it is, or 0."""
    logits, reference = two_policies
    logp = logits.log_softmax(-1)
    pi = logp.detach().exp()  # sampling is not differentiated
    (found,) = torch.autograd.grad((pi * KL[name](logp, reference, logp.detach())).sum(), logits)
    reverse = true_gradient(lambda lp: (lp.exp() * (lp - reference)).sum(), logits)
    forward = true_gradient(lambda lp: (reference.exp() * (reference - lp)).sum(), logits)
    expected = {"k1": torch.zeros(7), "k2": reverse, "k3": forward, "k3_plus": reverse, "k3_ratio": reverse}[name]
    assert torch.allclose(found, expected.double(), atol=1e-12)
    assert (forward - reverse).abs().max() > 0.01, "the two cannot be told apart here"
    says = KL[name].__doc__.partition("Gradient: ")[2]
    assert {"k1": "0 on average", "k3": "that of KL(ref‖π)"}.get(name, "that of KL(π‖ref)") in says


@pytest.mark.parametrize("name", [*KL])
def test_the_value_of_each_kl_estimator(two_policies, name):
    logits, reference = two_policies
    logp = logits.detach().log_softmax(-1)
    kl = (logp.exp() * (logp - reference)).sum()
    mean = (logp.exp() * KL[name](logp, reference, logp)).sum()
    assert torch.isclose(mean, kl) == ("Value biased" not in KL[name].__doc__)


def test_k3_ratio_is_unbiased_off_policy(two_policies):
    logits, reference = two_policies
    logp = logits.detach().log_softmax(-1)
    old = torch.linspace(0, 1, 7, dtype=torch.float64).log_softmax(-1)  # who sampled
    mean = (old.exp() * KL["k3_ratio"](logp, reference, old)).sum()
    assert torch.isclose(mean, (logp.exp() * (logp - reference)).sum())


@pytest.mark.parametrize(
    ("name", "value"),  # log p = -1, log ref = -2, log old = -1.5: x = -1
    [("k1", 1), ("k2", 0.5), ("k3", 1 / E), ("k3_plus", 1 / E), ("k3_ratio", math.exp(0.5) / E)],
)
def test_kl_by_hand(name, value):
    assert KL[name](t(-1.0), t(-2.0), t(-1.5)).item() == pytest.approx(value, abs=1e-6)


# ---- what a recipe adds ----


def test_the_objective_is_the_sum_of_what_the_recipe_names():
    """loss -1.1, k2 = (0.5)² / 2 · 0.1, penalty 0.3 · |log 1.1|, entropy 0.7 · 0.01."""
    ratio = math.log(1.1)
    batch = one_token(1.0, reference=[[0.0, -1 + ratio - 0.5]], penalty=[[0.0, 0.3]])
    algorithm = AlgorithmConfig(kl="k2", kl_loss=0.1, covariance="kl_cov", entropy=0.01)
    per_token, sums = objective(t([[0.0, -1 + ratio]]), batch, algorithm, entropy=t([[0.0, 0.7]]))
    assert per_token[0, 1].item() == pytest.approx(-1.1 + 0.0125 + 0.3 * ratio - 0.007, abs=1e-6)
    assert sums["reference_kl"].item() == pytest.approx(0.5 - ratio, abs=1e-6)


def test_covariance_by_hand():
    """A: 1, -1, 0; log p: -1, -3, -2. Means 0 and -2: 1, 1, 0."""
    assert covariance(np.array([1.0, -1, 0]), np.array([-1.0, -3, -2])).tolist() == [1, 1, 0]


def test_clip_cov_takes_some_of_the_tokens_between_its_bounds():
    cov = np.array([0.5, 2, 3, 4, 6, 2.5])
    rng = np.random.default_rng(0)
    chosen = [COVARIANCE["clip_cov"](cov, rng, share=0.34) for _ in range(50)]
    assert {int(c.sum()) for c in chosen} == {2}  # a third of six
    assert set(np.flatnonzero(np.any(chosen, axis=0))) == {1, 2, 3, 5}  # those between 1 and 5, and each of them at times
    assert COVARIANCE["clip_cov"](np.array([0.0, 9.0]), rng).tolist() == [False, False]


def test_kl_cov_takes_the_top_tokens():
    cov = np.array([0.5, 2, 3, 4, 6, 2.5])
    rng = np.random.default_rng(0)
    assert np.flatnonzero(COVARIANCE["kl_cov"](cov, rng, share=0.34)).tolist() == [3, 4]
    assert np.flatnonzero(COVARIANCE["kl_cov"](cov, rng)).tolist() == [4]  # at least one


@pytest.mark.parametrize(
    ("rewards", "all_", "differ"),
    [([0, 1], True, True), ([1, 1], True, False), ([1], True, False), ([1, None], True, False), ([None], False, False)],
)
def test_filters(sample, rewards, all_, differ):
    group = Group(Task("0", "", ""), [sample(1, 1, r) for r in rewards])
    assert (FILTERS["all"](group), FILTERS["differ"](group)) == (all_, differ)
