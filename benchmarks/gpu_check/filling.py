"""A loss that takes device memory, as a large model's micro-batch does: learner and engine have to share what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlreason.types import Batch

if TYPE_CHECKING:
    from torch import Tensor


def surrogate(logp: Tensor, batch: Batch, share: float = 0.7) -> Tensor:
    """PPO's surrogate without a clip. Memory up to `share` of the GPU is allocated and freed, so that torch's cache holds it.

    Prints how much was reserved before: a cache that was given back after the last step is not in it.
    """
    if logp.is_cuda:
        import torch

        total = torch.cuda.get_device_properties(logp.device).total_memory
        before = torch.cuda.memory_reserved(logp.device)
        if (missing := int(share * total) - before) > 0:
            torch.empty(missing, dtype=torch.uint8, device=logp.device)
        after = torch.cuda.max_memory_reserved(logp.device)
        print(f"reserved {before / total:.4f} of memory, at most {after / total:.4f}", flush=True)
    return -(logp - batch.old).exp() * batch.advantage
