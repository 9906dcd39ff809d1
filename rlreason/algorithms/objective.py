"""The loss of a token, put together as a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlreason.algorithms.kl import KL
from rlreason.algorithms.losses import LOSSES
from rlreason.algorithms.mismatch import CORRECTIONS, diagnostics, off_policy_mask
from rlreason.named import found
from rlreason.types import Batch

if TYPE_CHECKING:
    from torch import Tensor

    from rlreason.config import AlgorithmConfig


def objective(
    logp: Tensor, batch: Batch, algorithm: AlgorithmConfig, entropy: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """correction · policy loss + kl_loss · KL + penalty · |log r| - entropy bonus, per token [N, T]; and sums to log.

    `logp` [N, T] carries the gradient; `entropy` [N, T] is needed where the recipe has an entropy bonus. Times
    `batch.weight` and summed it is the loss; a row depends on no other, so any cut into micro-batches gives the same.
    """
    per_token = found(LOSSES, algorithm.loss)(logp, batch, **algorithm.loss_options)
    if algorithm.answers == "recorded":  # there was no sampler
        return per_token, {}
    weight = found(CORRECTIONS, algorithm.correction)(
        (batch.old - batch.logprobs) * batch.mask, batch.mask, **algorithm.correction_options
    )
    if algorithm.off_policy_mask:
        weight = weight * off_policy_mask(batch.advantage, logp, batch.logprobs, batch.mask, algorithm.off_policy_mask)
    per_token = per_token * weight.detach()
    sums = diagnostics(logp.detach(), batch.logprobs, batch.mask, weight)
    if algorithm.compares:
        sums["reference_kl"] = ((batch.logprobs - batch.reference) * batch.mask).sum()
    if algorithm.kl_loss:
        per_token = per_token + algorithm.kl_loss * KL[algorithm.kl](logp, batch.reference, batch.old)
    if algorithm.covariance == "kl_cov":
        per_token = per_token + batch.penalty * (logp - batch.old).abs()
    if entropy is not None:
        per_token = per_token - algorithm.entropy * entropy
    return per_token, sums
