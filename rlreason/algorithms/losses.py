"""Losses: from log-probabilities to one loss per token. Only methods of tensors are called, so torch is not loaded here.

Every loss takes `logp`, float32 [N, T], the log-probabilities under the policy that is being trained, and a `Batch`,
of which it reads `advantage`, `mask` and `old` (log-probabilities before this step, the proximal policy). r = exp(logp
- old) is the ratio, A the advantage. It returns [N, T]; entries where the mask is 0 mean nothing and are multiplied by
a weight of 0 later. Where r = 1, every gradient but that of `nll` is that of -A log p.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rlreason.types import Batch

if TYPE_CHECKING:
    from torch import Tensor

FAR = 20.0  # log-ratios beyond it are cut: exp(20) is 5e8, and no bound of any method lies out there


def nll(logp: Tensor, batch: Batch) -> Tensor:
    """-log p: supervised, rejection-sampling and off-policy distillation fine-tuning."""
    return -logp


def clip(logp: Tensor, batch: Batch, low: float = 0.2, high: float = 0.28, dual: float = 0.0) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO (1707.06347); high > low is DAPO's clip-higher (2503.14476).

    `dual` > 1 bounds the loss of a negative advantage by -dual A (dual clip, 1912.09729; INTELLECT-2's two-sided clip,
    2505.07291); 0 is off.
    """
    ratio = _ratio(logp, batch)
    loss = -(ratio * batch.advantage).minimum(ratio.clamp(1 - low, 1 + high) * batch.advantage)
    if dual:
        loss = loss.where(batch.advantage >= 0, loss.minimum(-dual * batch.advantage))
    return loss


def cispo(logp: Tensor, batch: Batch, low: float = 1.0, high: float = 4.0) -> Tensor:
    """-stop_gradient(clip(r, 1 - low, 1 + high)) A log p: every token keeps a gradient (MiniMax-M1, 2506.13585).

    The default clips at 0 and 5, as ScaleRL does (2510.13786).
    """
    return -_ratio(logp, batch).clamp(1 - low, 1 + high).detach() * batch.advantage * logp


def gspo(logp: Tensor, batch: Batch, low: float = 3e-4, high: float = 4e-4) -> Tensor:
    """`clip` with one ratio per sequence, the geometric mean of its tokens' (2507.18071). The bounds are the paper's:
    a mean over a sequence moves less than a token."""
    sequence = _mean(logp - batch.old, batch)
    ratio = (logp - logp.detach() + sequence.detach()).clamp(max=FAR / 2).exp()
    return -(ratio * batch.advantage).minimum(ratio.clamp(1 - low, 1 + high) * batch.advantage)


def gmpo(logp: Tensor, batch: Batch, low: float = 0.4, high: float = 0.4) -> Tensor:
    """-A times the geometric mean of the tokens' ratios, each clipped before it to [e^-low, e^high] on the side where
    that would gain (2507.20673). The paper averages over sequences: `per: sequence`."""
    sign = batch.advantage.sign()
    log_ratio = logp - batch.old
    clipped = sign * (sign * log_ratio).minimum(sign * log_ratio.clamp(-low, high))
    return -batch.advantage * _mean(clipped, batch).clamp(-FAR, FAR).exp()


def sapo(logp: Tensor, batch: Batch, tau_pos: float = 1.0, tau_neg: float = 1.05) -> Tensor:
    """-A · 4/τ · sigmoid(τ (r - 1)): a soft gate in place of the clip, τ by the sign of A (SAPO, 2511.20347)."""
    tau = tau_neg + (tau_pos - tau_neg) * (batch.advantage > 0)
    return -(tau * (_ratio(logp, batch) - 1)).sigmoid() * (4 / tau) * batch.advantage


def dppo(logp: Tensor, batch: Batch, low: float = 0.2, high: float = 0.2, cap: float = 20.0) -> Tensor:
    """-stop_gradient(min(r, cap)) A log p, masked where the *probability* has moved too far in the direction of A:
    p - p_old > high, or < -low (DPPO with total variation, 2602.04879). A ratio says little of a rare token."""
    moved = (logp.exp() - batch.old.exp()).detach()
    inside = ((batch.advantage > 0) & (moved <= high)) | ((batch.advantage <= 0) & (moved >= -low))
    return -_ratio(logp, batch).clamp(max=cap).detach() * batch.advantage * logp * inside


def _ratio(logp: Tensor, batch: Batch) -> Tensor:
    ratio: Tensor = (logp - batch.old).clamp(-FAR, FAR).exp()
    return ratio


def _mean(values: Tensor, batch: Batch) -> Tensor:
    """Over the trained tokens of each row, [N, 1]; 0 for a row without any."""
    mean: Tensor = (values * batch.mask).sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True).clamp(min=1)
    return mean


LOSSES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (clip, cispo, gspo, gmpo, sapo, dppo, nll)}
AVERAGES = ("token", "sequence", "prompt", "constant")
