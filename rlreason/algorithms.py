"""Advantages, losses and filters: pure functions, chosen by name. Add one by writing one.

They call only methods of their arguments, so that a recipe can be checked without loading torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlreason.types import Batch, Group

if TYPE_CHECKING:
    from torch import Tensor

Rewards = NDArray[np.float64]

# ---- advantages: the rewards of one group [n] -> one number per sample [n] ----


def grpo(rewards: Rewards) -> Rewards:
    """Reward standardised within the group (DeepSeekMath, 2402.03300). All equal: 0."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-6)


def dr_grpo(rewards: Rewards) -> Rewards:
    """Reward centred within the group; dividing by std over-weights easy and hard tasks (Dr.GRPO, 2503.20783)."""
    return rewards - rewards.mean()


def rloo(rewards: Rewards) -> Rewards:
    """Reward minus the mean of the *other* samples (2402.14740): n / (n - 1) times `dr_grpo`. One sample: 0."""
    n = len(rewards)
    return (rewards - rewards.mean()) * (n / (n - 1) if n > 1 else 0.0)


# ---- losses: log-probabilities of the trained policy [N, T] -> loss per token [N, T] ----


def nll(logp: Tensor, batch: Batch, low: float, high: float) -> Tensor:
    """Negative log-likelihood: supervised, rejection-sampling and distillation fine-tuning."""
    return -logp


def clip(logp: Tensor, batch: Batch, low: float, high: float) -> Tensor:
    """PPO's clipped surrogate (1707.06347); `high > low` is DAPO's clip-higher (2503.14476)."""
    ratio = (logp - batch.logprobs).exp()
    return -(ratio * batch.advantage).minimum(ratio.clamp(1 - low, 1 + high) * batch.advantage)


def cispo(logp: Tensor, batch: Batch, low: float, high: float) -> Tensor:
    """Clip the importance weight and keep every token's gradient (MiniMax-M1, 2506.13585)."""
    ratio = (logp - batch.logprobs).exp().detach()
    return -ratio.clamp(1 - low, 1 + high) * batch.advantage * logp


def gspo(logp: Tensor, batch: Batch, low: float, high: float) -> Tensor:
    """One importance ratio per sequence, the geometric mean of its tokens' (2507.18071); wants bounds near 3e-4."""
    length = batch.mask.sum(1, keepdim=True).clamp(min=1)
    log_ratio = ((logp - batch.logprobs) * batch.mask).sum(1, keepdim=True) / length
    ratio = (logp - logp.detach() + log_ratio.detach()).exp()
    return -(ratio * batch.advantage).minimum(ratio.clamp(1 - low, 1 + high) * batch.advantage)


# ---- filters: is a group worth training on? ----


def answered(group: Group) -> bool:
    """Every group with an answer that could be judged."""
    return bool(group.judged())


def differ(group: Group) -> bool:
    """Groups whose rewards differ: the others have advantage 0 (dynamic sampling, DAPO, 2503.14476)."""
    return len({s.reward for s in group.judged()}) > 1


ADVANTAGES: dict[str, Callable[[Rewards], Rewards]] = {f.__name__: f for f in (grpo, dr_grpo, rloo)}
LOSSES: dict[str, Callable[[Tensor, Batch, float, float], Tensor]] = {f.__name__: f for f in (nll, clip, cispo, gspo)}
FILTERS: dict[str, Callable[[Group], bool]] = {"all": answered, "differ": differ}
AVERAGES = ("token", "sequence", "prompt", "constant")
