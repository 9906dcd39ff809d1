"""Matrix products of a learner on a CPU: by oneDNN, where torch's own take twice as long.

torch hands float32 products to MKL, which on AMD's processors uses half the width of their vectors: 97 GFLOP/s a core
where oneDNN, which comes with torch too and is what vLLM takes, has 230 (benchmarks/RESULTS.md has the machine).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CPU = Path("/proc/cpuinfo")


@cache
def better() -> bool:
    """Is oneDNN the faster one here? Told by the maker of the processor, for a measurement might come out otherwise on a
    resumed run, whose bits are to be the same."""
    return CPU.is_file() and "AuthenticAMD" in CPU.read_text() and torch._C._has_mkldnn


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a bᵀ + bias: [..., K], [N, K], [N] -> [..., N]. Without a gradient where oneDNN does it."""
    if a.device.type == "cpu" and a.dtype == torch.float32 and better():
        found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return found
    return nn.functional.linear(a, b, bias)


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, whose gradients are g W, gᵀ x and the sum of g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = upstream[0].contiguous()
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows = g.flatten(0, -2)
        return (
            product(g, weight.t()) if to_x else None,
            product(rows.t(), x.flatten(0, -2).t()) if to_weight else None,
            rows.sum(0) if to_bias else None,
        )


class Linear(nn.Linear):
    """A linear layer that goes by `product`, forward and backward."""

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


def speed_up(model: Any) -> Any:
    """Let every float32 linear layer of `model` go the faster way on a CPU; the weights, and their names, are the same."""
    if better():
        for layer in model.modules():
            if type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
                layer.__class__ = Linear
    return model
