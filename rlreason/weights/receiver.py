"""The engine's end: weights in, by vLLM's weight-transfer API, in every worker of an engine.

`load` and `join` are what `LLMEngine.collective_rpc` runs in each worker. They return an outcome and raise nothing: where
several workers raise, vLLM reports the first error and hands the others to the next calls as their answers.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlreason import pulse
from rlreason.errors import WeightsUnavailable, Wounded
from rlreason.weights.broadcast import BroadcastGroup
from rlreason.weights.delta import Held
from rlreason.weights.reader import mapped, read
from rlreason.weights.tensors import Handle, parted


class Outcome(NamedTuple):
    """What became of a call in one worker."""

    state: str  # done; unavailable: others are on their way; damaged: this engine cannot get them; failed: a bug
    why: str = ""


def load(worker: Any, handle: Handle) -> Outcome:
    """Replace the weights of a vLLM worker. After any outcome but `done` it holds a mixture, until the next that is."""
    try:
        worker.start_weight_update()
        worker.update_weights({"handle": handle})  # which ends the update by itself where it raises
        worker.finish_weight_update()
    except WeightsUnavailable as error:
        return Outcome("unavailable", str(error))
    except Wounded as error:
        return Outcome("damaged", str(error))
    except Exception:
        return Outcome("failed", traceback.format_exc())
    return Outcome("done")


def join(worker: Any, info: dict[str, Any]) -> Outcome:
    """Join the group over which weights are broadcast, and leave the one before."""
    try:
        worker.init_weight_transfer_engine(info)
    except WeightsUnavailable as error:
        return Outcome("unavailable", str(error))
    except Exception:
        return Outcome("failed", traceback.format_exc())
    return Outcome("done")


def unlink_shared_memory(worker: Any) -> None:
    """Remove the names of the shared memory over which a tensor parallel engine's workers communicate on a CPU.

    They have mapped it by now, and vLLM removes the names only where it ends in good order.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.startswith("/dev/shm/vllm_dist_") and not path.endswith("(deleted)"):
            Path(path).unlink(missing_ok=True)  # the other workers map the same


def outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """The worst of what the workers of an engine report."""
    order = ("done", "unavailable", "damaged", "failed")
    return max(outcomes, key=lambda one: order.index(one.state))


@dataclass
class Init:
    """vLLM's name for what an engine must know before its first update: where the broadcast group meets."""

    address: str = ""
    port: int = 0
    rank: int = 0  # of this engine's first worker
    world: int = 0
    timeout: float = 0.0  # seconds


@dataclass
class Update:
    """One publication, on its way into an engine."""

    handle: Handle = field(default_factory=dict)


class Receiver(WeightTransferEngine):  # type: ignore[misc]
    """Weights into the model of one vLLM worker."""

    init_info_cls = Init
    update_info_cls = Update
    group: BroadcastGroup | None = None
    held: Held | None = None  # delta

    def init_transfer_engine(self, init_info: Init) -> None:
        self.shutdown()
        self.group = BroadcastGroup.enter(
            init_info.address, init_info.port, init_info.rank + self.parallel_config.rank, init_info.world, self.device,
            init_info.timeout,
        )  # fmt: skip
        self.group.connect()

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        head = getattr(self.model, "lm_head", None)
        if hasattr(head, "cpu_linear"):  # a tied head keeps a packed copy of the old embedding (NOTES.md)
            from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

            dispatch_cpu_unquantized_gemm(head, remove_weight=False)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # vLLM's own version synchronizes on every device, and a CPU has no streams
            torch.accelerator.synchronize()  # from here on the learner may overwrite what was read

    def receive_weights(self, update_info: Update) -> None:
        handle = update_info.handle
        if handle["kind"] == "broadcast":
            self._receive_broadcast(handle)
        elif handle["kind"] == "delta":
            self.held = self.held or Held()
            self.model.load_weights(self.held.read(handle))
        elif handle["kind"] == "ipc":
            self.model.load_weights(mapped(handle, self.device))
        else:
            self.model.load_weights(read(handle))

    def _receive_broadcast(self, handle: Handle) -> None:
        if self.group is None:
            raise WeightsUnavailable("this worker is in no broadcast group")
        group = self.group

        def receive(size: int) -> Tensor:
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
            group.broadcast(buffer)
            return buffer

        for bucket in parted(handle, receive):
            self.model.load_weights(bucket)
            pulse.beat("receiving weights")

    def shutdown(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None
