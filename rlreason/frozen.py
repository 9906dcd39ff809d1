"""A policy that does not learn: the reference of a KL penalty, or the teacher of a distillation. One per learner process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlreason.forward import logits

FILE = "reference.safetensors"


class Frozen:
    """Under ZeRO-3 its weights are cut into parts among the ranks, as the learner's are."""

    def __init__(self, model: nn.Module, device: torch.device, sharded: bool, deepspeed_config: dict[str, Any]):
        self.sharded = sharded
        model.requires_grad_(False).eval()
        self.model = model if sharded else model.to(device)
        if sharded:
            self.model, *_ = deepspeed.initialize(model=model, config=deepspeed_config)

    def __call__(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        return logits(self.model, tokens, positions)

    @torch.no_grad()
    def become(self, policy: nn.Module) -> None:
        """Take over the weights that `policy`, a model of the same kind, has now."""
        for mine, theirs in zip(self._module().parameters(), policy.parameters(), strict=True):
            with self._gathered([mine, theirs], write=True):
                mine.data.copy_(theirs.data)

    def save(self, folder: str, rank: int) -> None:
        """Write the weights into a checkpoint, from rank 0; every rank takes part."""
        held: dict[str, Tensor] = {}
        for name, p in self._named():
            with self._gathered([p]):
                if rank == 0:
                    held[name] = p.data.cpu().contiguous()
        if rank == 0:
            save_file(held, Path(folder) / FILE)

    @torch.no_grad()
    def restore(self, folder: str) -> None:
        """Go back to the weights of a checkpoint, if it holds any."""
        if (Path(folder) / FILE).exists():
            held = load_file(Path(folder) / FILE)
            for name, mine in self._named():
                with self._gathered([mine], write=True):
                    mine.data.copy_(held[name])

    def _module(self) -> nn.Module:
        return self.model.module if self.sharded else self.model  # type: ignore[return-value]

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._module().named_parameters())

    def _gathered(self, parameters: list[nn.Parameter], write: bool = False) -> AbstractContextManager[Any]:
        """The whole of the parameters; `write`: what rank 0 changes is cut up again for all."""
        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None, enabled=self.sharded)
