"""A hash of a model's weights, in memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rlreason import manifest


def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """`manifest.weights` of tensors that are given in the order of their names: what those of a directory give, if they are
    the same."""
    return manifest.weights(
        (name, manifest.NAMES[str(t.dtype).removeprefix("torch.")], list(t.shape),
         [t.detach().cpu().reshape(-1).view(torch.uint8).numpy().data])
        for name, t in named
    )  # fmt: skip
