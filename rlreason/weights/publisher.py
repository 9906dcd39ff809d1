"""The learner's end: weights out, by shared memory, files, CUDA IPC or broadcast."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlreason import pulse
from rlreason.errors import WeightsUnavailable
from rlreason.storage import stored
from rlreason.weights.broadcast import BroadcastGroup
from rlreason.weights.delta import Changes
from rlreason.weights.tensors import HEADER, Handle, Source, messages


class Publisher:
    """`publish` returns a handle that stays valid until the next `publish`.

    A publication by `broadcast` is described by `publish` and sent by `send`, while the engines that were given the handle
    receive it.
    """

    def __init__(self, kind: str, folder: Path | None = None, device: torch.device | str = "cpu"):
        """`folder`: where `file` and `delta` write."""
        self.kind, self.folder, self.device = kind, folder, torch.device(device)
        self.changes = Changes(folder) if kind == "delta" and folder else None
        self.memory: int | None = None  # shm: the descriptor of an anonymous file
        self.number = 0  # shm: of the publication
        self.exported: dict[str, tuple[Tensor, Any]] = {}  # ipc: what the engines may map, and its handle
        self.group: BroadcastGroup | None = None

    def publish(self, weights: Source | Iterable[tuple[str, Tensor]]) -> Handle:
        """Raises `StorageError` where files cannot be written."""
        source = weights if isinstance(weights, Source) else Source.of(weights)
        handle: Handle = {"kind": self.kind} | source.describe()
        if self.folder and self.kind in ("file", "delta"):
            with stored(self.folder):
                return handle | (self.changes.publish(_on_cpu(source)) if self.changes else self._file(source))
        if self.kind == "broadcast":
            return handle
        return handle | (self._ipc(source) if self.kind == "ipc" else self._shm(source))

    # ---- broadcast ----

    def open(self, host: str, world: int, timeout: float) -> int:
        """Leave the group that there may be and open another, of `world` members with this one. Returns its store's port."""
        self.close()
        self.group = BroadcastGroup.open(host, world, self.device, timeout)
        return self.group.port

    def connect(self) -> bool:
        """Wait for the members of the group. False if it did not come about: somebody is lost."""
        assert self.group is not None
        try:
            self.group.connect()
        except WeightsUnavailable as error:
            print(f"weights: {error}", flush=True)
            self.group.interrupt()
            return False
        return True

    def send(self, source: Source) -> bool:
        """Broadcast what `publish` described. False if the group was cut off: nobody is sure to have received all of it.

        Whatever else goes wrong is raised, after the others were released.
        """
        assert self.group is not None
        try:
            for message in messages(source):
                self.group.broadcast(message)
                pulse.beat("broadcasting weights")
        except WeightsUnavailable as error:
            print(f"weights: {error}", flush=True)
            self.group.interrupt()
            return False
        except BaseException:
            self.group.interrupt()
            raise
        return True

    def interrupt(self) -> None:
        """Make `connect` and `send` give up here, and every other member too. From any thread."""
        if self.group:
            self.group.interrupt()

    def close(self) -> None:
        if self.group:
            self.group.close()
            self.group = None

    # ---- one host ----

    def _file(self, source: Source) -> Handle:
        from safetensors.torch import save_file

        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "model.partial"
        save_file(_on_cpu(source), partial)
        partial.replace(self.folder / "model.safetensors")
        return {"path": str(self.folder)}

    def _shm(self, source: Source) -> Handle:
        size = sum(spec.nbytes for spec in source.specs)
        if self.memory is None:
            # Anonymous: it has no name in /dev/shm to be left behind, and ends with the last process that maps it.
            self.memory = os.memfd_create("rlreason-weights")
            os.ftruncate(self.memory, HEADER + size)
        self.number += 1
        with mmap.mmap(self.memory, HEADER + size) as view:
            view[:HEADER] = bytes(HEADER)  # 0: being written. A reader looks again when it has read all.
            start = HEADER
            for _, t in source.tensors():
                target = torch.frombuffer(view, dtype=t.dtype, count=t.numel(), offset=start)
                target.copy_(t.detach().reshape(-1))
                start += t.nbytes
            del target  # a mapping with a tensor on it cannot be closed
            view[:HEADER] = self.number.to_bytes(HEADER, "little")
        return {"path": f"/proc/{os.getpid()}/fd/{self.memory}", "number": self.number}

    def _ipc(self, source: Source) -> Handle:
        """Handles of device memory, exported once: a parameter's own, or that of a buffer for one that is gathered."""
        from torch.multiprocessing.reductions import reduce_tensor

        handles = []
        for name, t in source.tensors():
            held, handle = self.exported.get(name, (None, None))
            if source.transient and held is not None:
                held.copy_(t)
            else:
                now = t.detach().clone() if source.transient else t.detach().contiguous()
                if held is None or (now.data_ptr(), now.dtype, now.shape) != (held.data_ptr(), held.dtype, held.shape):
                    handle = reduce_tensor(now)[1]  # type: ignore[no-untyped-call]
                    self.exported[name] = now, handle
            handles.append(handle)
        torch.cuda.synchronize()  # the engine reads from another process, which this stream does not order
        return {"ipc_handles": handles}


def _on_cpu(source: Source) -> dict[str, Tensor]:
    """All tensors in host memory; copies only where the originals will not stay."""
    return {name: t.detach().to("cpu", copy=source.transient).contiguous() for name, t in source.tensors()}
