"""Weights of this host: the tensors of a publication in shared memory, in a directory, or on the learner's GPU."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rlreason.errors import WeightsUnavailable
from rlreason.weights.tensors import HEADER, Handle, specs_of


def mapped(handle: Handle, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a handle of kind `ipc`: the learner's own memory, of the GPU that both share."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    index = device.index if device.index is not None else torch.cuda.current_device()
    for name, arguments in zip(handle["names"], handle["ipc_handles"], strict=True):
        here = list(arguments)
        here[6] = index  # the device's number in the learner's process, which may have another here
        yield name, rebuild_cuda_tensor(*here)  # type: ignore[no-untyped-call]


def read(handle: Handle) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a handle of kind `shm` or `file`, valid until the next is asked for.

    Raises `WeightsUnavailable`, at the end too, if they are not those of this publication.
    """
    if handle["kind"] == "file":
        from safetensors import safe_open

        files = sorted(Path(handle["path"]).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{handle['path']} holds no *.safetensors")
        for file in files:
            with safe_open(file, framework="pt") as f:
                yield from ((name, f.get_tensor(name)) for name in f.keys())  # noqa: SIM118  not a dictionary
        return
    try:
        descriptor = os.open(handle["path"], os.O_RDONLY)
    except OSError as error:  # with the process that published it
        raise WeightsUnavailable(handle["path"]) from error
    try:
        # Private and writable, as torch wants it; nothing is written, so nothing is copied.
        view = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(descriptor)
    _assert_whole(view, handle)
    start = HEADER
    for spec in specs_of(handle):
        count = math.prod(spec.shape)
        yield spec.name, torch.frombuffer(view, dtype=spec.dtype, count=count, offset=start).view(spec.shape)
        start += spec.nbytes
    _assert_whole(view, handle)


def _assert_whole(view: mmap.mmap, handle: Handle) -> None:
    if (number := int.from_bytes(view[:HEADER], "little")) != handle["number"]:
        raise WeightsUnavailable(f"publication {handle['number']} is {f'replaced by {number}' if number else 'being replaced'}")
