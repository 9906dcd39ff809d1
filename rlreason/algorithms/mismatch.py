"""The sampler is not quite the learner: other kernels, other precision, older weights. What that costs, and a remedy.

ρ = old / μ, with μ the policy that sampled (as the engine says) and old the learner's before this step. A correction
turns it into a weight per token, [N, T], which multiplies the policy's loss and has no gradient. It does not touch
the denominators. Functions take log ρ and the mask, both [N, T].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rlreason.algorithms.losses import FAR

if TYPE_CHECKING:
    from torch import Tensor


def none(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """1: no correction."""
    return log_ratio.new_ones(log_ratio.shape)


def token_tis(log_ratio: Tensor, mask: Tensor, cap: float = 2.0) -> Tensor:
    """min(ρ, cap): truncated importance sampling per token. Bounded and slightly biased; 1 on-policy."""
    return _exp(log_ratio).clamp(max=cap)


def sequence_tis(log_ratio: Tensor, mask: Tensor, cap: float = 2.0) -> Tensor:
    """min(Π ρ, cap) for every token of the sequence: unbiased below the cap, of high variance when long."""
    return _exp(_sum(log_ratio, mask)).clamp(max=cap).expand_as(log_ratio)


def token_mis(log_ratio: Tensor, mask: Tensor, low: float = 0.0, high: float = 3.0) -> Tensor:
    """ρ where it lies in [low, high], else 0: masked importance sampling per token."""
    return _inside(_exp(log_ratio), low, high)


def sequence_mis(log_ratio: Tensor, mask: Tensor, low: float = 0.0, high: float = 3.0) -> Tensor:
    """Π ρ where it lies in [low, high], else 0, for every token of the sequence (TRL's default, with 3)."""
    return _inside(_exp(_sum(log_ratio, mask)), low, high).expand_as(log_ratio)


def icepop(log_ratio: Tensor, mask: Tensor, low: float = 0.5, high: float = 5.0) -> Tensor:
    """ρ where it lies in [low, high], else 0: tokens on which the engines disagree both ways are left out (IcePop,
    2510.18855)."""
    return _inside(_exp(log_ratio), low, high)


def geometric(log_ratio: Tensor, mask: Tensor, low: float = 0.999, high: float = 1.001, cap: float = 0.0) -> Tensor:
    """1 where the geometric mean of the sequence's ρ lies in [low, high], else 0: rejection that does not grow with
    length. `cap` > 0 multiplies what is kept by `token_tis` (seq-mask-TIS)."""
    mean = _exp(_sum(log_ratio, mask) / mask.sum(1, keepdim=True).clamp(min=1))
    kept = ((mean >= low) & (mean <= high)).to(log_ratio.dtype).expand_as(log_ratio)
    return kept * token_tis(log_ratio, mask, cap) if cap else kept


def off_policy_mask(advantage: Tensor, logp: Tensor, sampler: Tensor, mask: Tensor, delta: float) -> Tensor:
    """0 where the advantage is negative and the sequence's mean log(μ / π) exceeds `delta`, else 1 (DeepSeek-V3.2,
    2512.02556): a bad answer that the policy would hardly give any more teaches nothing. [N, T]"""
    drift = _sum(sampler - logp.detach(), mask) / mask.sum(1, keepdim=True).clamp(min=1)
    return ((advantage >= 0) | (drift <= delta)).to(mask.dtype)


def diagnostics(old: Tensor, sampler: Tensor, mask: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Sums over the tokens and sequences of a micro-batch; add those of all, then see `summary`."""
    log_ratio = (old - sampler) * mask
    ratio, total = _exp(log_ratio), _sum(log_ratio, mask)
    length = mask.sum(1, keepdim=True)
    some = (length > 0).to(mask.dtype)
    return {
        "tokens": mask.sum(),
        "sequences": some.sum(),
        "gap": log_ratio.abs().sum(),
        "kl": -log_ratio.sum(),
        "k3": ((ratio - log_ratio - 1) * mask).sum(),
        "chi2_token": (ratio.square() * mask).sum(),
        "ppl_ratio": (_exp(-total / length.clamp(min=1)) * some).sum(),
        "chi2_sequence": (_exp(total).square() * some).sum(),
        "masked": ((weight == 0) * mask).sum(),
    }


def summary(sums: dict[str, float]) -> dict[str, float]:
    """What to log, from the sums of a whole batch.

    policy_gap: mean |log old - log μ|. mismatch/kl, k3: KL(μ‖old) by two estimators. mismatch/ppl_ratio: mean over
    sequences of perplexity(old) / perplexity(μ). mismatch/chi2_token, chi2_sequence: E[ρ²] - 1 with ρ of a token, of a
    whole sequence. mismatch/masked: share of the tokens whose correction is 0.
    """
    tokens, sequences = max(sums["tokens"], 1.0), max(sums["sequences"], 1.0)
    return {
        "policy_gap": sums["gap"] / tokens,
        "mismatch/kl": sums["kl"] / tokens,
        "mismatch/k3": sums["k3"] / tokens,
        "mismatch/ppl_ratio": sums["ppl_ratio"] / sequences,
        "mismatch/chi2_token": sums["chi2_token"] / tokens - 1,
        "mismatch/chi2_sequence": sums["chi2_sequence"] / sequences - 1,
        "mismatch/masked": sums["masked"] / tokens,
    }


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-FAR, FAR).exp()


def _sum(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1, keepdim=True)


def _inside(weight: Tensor, low: float, high: float) -> Tensor:
    return weight * ((weight >= low) & (weight <= high))


CORRECTIONS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (token_tis, sequence_tis, token_mis, sequence_mis, icepop, geometric, none)
}
