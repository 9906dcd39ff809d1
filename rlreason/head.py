"""A model's last layer, read without keeping its logits: of a large vocabulary they take more memory than all the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rlreason.gemm import product


class _LogProbs(torch.autograd.Function):
    """log p = z_t - log Σ exp z and entropy = -Σ p log p of logits z = (W h + b) / temperature, `rows` tokens at a time.

    Backward works the logits out once more: dlog p/dz = 1[t] - p, and dentropy/dz = -p (log p + entropy).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, rows: int
    ) -> Tensor:
        found = []
        for h, target in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            logp = torch.log_softmax(product(h, weight, bias).float() / temperature, -1)
            found.append(torch.stack([logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)], -1))
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature, ctx.rows = temperature, rows
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        (told,) = upstream
        to_hidden = torch.empty_like(hidden)
        summed = torch.promote_types(weight.dtype, torch.float32)  # as one product would be: not rounded for every part
        to_weight = torch.zeros_like(weight, dtype=summed) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            h, of_logp, of_entropy = hidden[part], told[part, :1], told[part, 1:]
            logp = torch.log_softmax(product(h, weight, bias).float() / ctx.temperature, -1)
            p = logp.exp()
            entropy = -(p * logp).sum(-1, keepdim=True)
            to_z = p * -(of_logp + of_entropy * (logp + entropy))
            to_z.scatter_add_(1, targets[part, None], of_logp)
            to_z = (to_z / ctx.temperature).to(h.dtype)
            to_hidden[part] = product(to_z, weight.t())
            if to_weight is not None:
                to_weight += product(to_z.t(), h.t())
            if to_bias is not None:
                to_bias += to_z.sum(0)
        return to_hidden, None if to_weight is None else to_weight.to(weight.dtype), to_bias, None, None, None


class Head:
    """Takes the place of the last layer's forward pass: within `asking` it gives two numbers a token, and no logits.

    It stays a part of the module, so whatever is hooked to that (ZeRO-3 brings the weights) finds it as it was.
    """

    def __init__(self, model: Any, most: float, whole: bool = False):
        """`most`: bytes of logits that are held at a time. `whole`: they are worked out in float32, whatever the weights are
        (MiniMax-M1, 2506.13585: a bfloat16 head sets learner and sampler apart)."""
        self.layer = model.get_output_embeddings()
        self.whole, self.temperature = whole, 1.0
        self.targets: Tensor | None = None
        self.rows = max(1, int(most / 4 / self.layer.weight.shape[0]))
        self.layer.forward = self.forward

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = self.layer.weight, getattr(self.layer, "bias", None)
        if self.whole:
            hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
        if self.targets is None:
            return linear(hidden, weight, bias)
        told: Any = _LogProbs.apply(hidden.flatten(0, -2), weight, bias, self.targets.flatten(), self.temperature, self.rows)  # type: ignore[no-untyped-call]
        return told.view(*hidden.shape[:-1], 2)

    @contextmanager
    def asking(self, tokens: Tensor, temperature: float) -> Iterator[None]:
        """Inside, the model's output [M, L, 2] holds log-probability and entropy of the token that follows each; of a row's
        last they mean nothing. `tokens` [M, L] int64."""
        self.targets, self.temperature = tokens.roll(-1, 1), temperature
        try:
            yield
        finally:
            self.targets = None
