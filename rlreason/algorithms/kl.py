"""The KL divergence KL(π‖ref) from single tokens y ~ π: estimators of its value, and what the gradient of each is.

With x = log ref(y) - log π(y). A value that is right on average need not have a gradient that is: as a term of the
loss an estimator is differentiated *without* the part that comes from sampling, and what is then left differs. The
docstrings say it, for on-policy samples; tests check each by enumerating a vocabulary (see also 2510.01555).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rlreason.algorithms.losses import FAR

if TYPE_CHECKING:
    from torch import Tensor


def k1(logp: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    """-x. Value unbiased, of any sign. Gradient: 0 on average, so in a loss it does nothing but add noise."""
    return logp - reference


def k2(logp: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    """x² / 2. Value biased. Gradient: that of KL(π‖ref), the right one."""
    return (logp - reference).square() / 2


def k3(logp: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    """e^x - x - 1. Value unbiased and >= 0 (GRPO, R1). Gradient: that of KL(ref‖π), the *forward* divergence."""
    x = (reference - logp).clamp(-FAR, FAR)
    return x.exp() - x - 1


def k3_plus(logp: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    """The value of `k3` with the gradient of `k2`. Value unbiased. Gradient: that of KL(π‖ref)."""
    through = k2(logp, reference, old)
    return k3(logp, reference, old).detach() + through - through.detach()


def k3_ratio(logp: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    """π/old · k3, differentiated through the ratio as well (DeepSeek-V3.2, 2512.02556). Value unbiased, off-policy
    too. Gradient: that of KL(π‖ref)."""
    return (logp - old).clamp(-FAR, FAR).exp() * k3(logp, reference, old)


KL: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {f.__name__: f for f in (k1, k2, k3, k3_plus, k3_ratio)}
