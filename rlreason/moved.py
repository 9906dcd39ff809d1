"""Does everything learn? A parameter that no step moves is a mistake that no curve shows."""

from __future__ import annotations

from collections.abc import Iterator

from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

PART = 1 << 24  # numbers: 128 MiB in float64
Fingerprints = dict[str, tuple[float, float]]


def fingerprints(model: nn.Module, masters: bool) -> Fingerprints:
    """Two sums over each trainable parameter; `masters`: over DeepSpeed's float32 master, as bfloat16 would hide a step of
    1e-6. Every rank takes part."""
    return dict(_each(model, masters))


def _each(model: nn.Module, masters: bool) -> Iterator[tuple[str, tuple[float, float]]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".experts." not in name:  # an expert that no token chose does not move
            master = safe_get_full_fp32_param(parameter) if masters else None
            values = (parameter if master is None else master).detach().reshape(-1)
            yield name, sums(values)


def sums(values: Tensor) -> tuple[float, float]:
    """Of `values` [N] and of their squares, in float64, which is made of a part at a time."""
    total, squares = 0.0, 0.0
    for part in values.split(PART):  # type: ignore[no-untyped-call]
        exact = part.double()
        total, squares = total + exact.sum().item(), squares + exact.square().sum().item()
    return total, squares


def assert_moved(before: Fingerprints, after: Fingerprints) -> None:
    """Raises `RuntimeError` with the names of those that did not."""
    if still := [name for name in after if after[name] == before[name]]:
        raise RuntimeError(f"{len(still)} of {len(before)} trainable parameters did not move in the first step that had a "
                           f"gradient, so they would never learn: {', '.join(still[:5])} …")  # fmt: skip
