"""The tensors of a publication: what describes them, and how many of them share a message."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Handle = dict[str, Any]
Named = Iterable[tuple[str, Tensor]]

HEADER = 64  # bytes before the tensors in shared memory: the number of the publication that they are
BUCKET = 256 << 20  # bytes of tensors in one broadcast, or one larger tensor
ALIGNED = 16  # bytes; every tensor of a bucket begins at a multiple of it


class Spec(NamedTuple):
    """What a tensor is, without its values."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Source:
    """The weights of a publication.

    `specs` are known before any tensor is. `tensors()` yields (name, tensor) in the order of `specs`; where `transient`,
    each is valid until the next is requested, as under ZeRO-3, where the ranks gather a bucket at a time.
    """

    specs: Sequence[Spec]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    transient: bool = False

    @classmethod
    def of(cls, named: Named) -> Source:
        """Tensors that stay where they are."""
        held = [(name, t.detach()) for name, t in named]
        return cls([Spec(name, t.dtype, tuple(t.shape)) for name, t in held], lambda: iter(held))

    def describe(self) -> Handle:
        """The part of a handle that every transport has in common."""
        return {
            "names": [spec.name for spec in self.specs],
            "dtypes": [str(spec.dtype).removeprefix("torch.") for spec in self.specs],
            "shapes": [list(spec.shape) for spec in self.specs],
        }


def specs_of(handle: Handle) -> list[Spec]:
    """What `Source.describe` described."""
    rows = zip(handle["names"], handle["dtypes"], handle["shapes"], strict=True)
    return [Spec(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]


def buckets(sizes: Sequence[int]) -> Iterator[slice]:
    """Which tensors, of these `sizes` in bytes, share a message: one message a tensor would be latency-bound."""
    start, filled = 0, 0
    for i, size in enumerate(sizes):
        if i > start and filled + size > BUCKET:
            yield slice(start, i)
            start, filled = i, 0
        filled += padded(size)
    if sizes:
        yield slice(start, len(sizes))


def padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of `tensors` one after the other, uint8 on their device."""
    parts = [t.contiguous().reshape(-1).view(torch.uint8) for t in tensors]
    return torch.cat([torch.nn.functional.pad(part, (0, -len(part) % ALIGNED)) for part in parts])


def messages(source: Source) -> Iterator[Tensor]:
    """The weights of `source` as buckets of bytes, each complete and on the tensors' device when it is yielded."""
    parts = buckets([spec.nbytes for spec in source.specs])
    part, held = next(parts, None), []
    for i, (_, tensor) in enumerate(source.tensors(), 1):
        assert part is not None
        held.append(tensor.detach().clone() if source.transient else tensor.detach())
        if i == part.stop:
            yield joined(held)
            part, held = next(parts, None), []


def parted(handle: Handle, receive: Callable[[int], Tensor]) -> Iterator[list[tuple[str, Tensor]]]:
    """The tensors of a handle, a bucket at a time; `receive(n)` returns the next n bytes, uint8 on the device."""
    specs = specs_of(handle)
    for part in buckets([spec.nbytes for spec in specs]):
        chosen = specs[part]
        buffer, start, found = receive(sum(padded(spec.nbytes) for spec in chosen)), 0, []
        for name, dtype, shape in chosen:
            size = math.prod(shape) * dtype.itemsize
            found.append((name, buffer[start : start + size].view(dtype).view(shape)))
            start += padded(size)
        yield found
