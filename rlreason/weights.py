"""How weights travel from the learner to the rollouts: shared memory, files, NCCL, CUDA IPC.

A publication is a *handle*: a small dictionary that says where the weights are. It is all that passes through Ray.
`kind` is one of

    shm   host memory of the learner, mapped by every engine of the same host
    file  a Hugging Face directory: the fallback, and the way back after a restart
    delta files of what has changed, for a slow link between hosts
    ipc   device memory of a learner that shares the engine's GPU
    nccl  a broadcast that every engine joins

and `names`, `dtypes`, `shapes` describe the tensors, in the order in which they travel.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlreason import manifest
from rlreason.delta import Changes, Held
from rlreason.errors import Gone
from rlreason.storage import stored

Handle = dict[str, Any]
Named = Iterable[tuple[str, Tensor]]


HEADER = 64  # bytes before the tensors in shared memory: the number of the publication that they are
BUCKET = 256 << 20  # bytes of tensors that one broadcast carries, or one larger tensor
ALIGNED = 16  # bytes at a multiple of which each of them begins


class Publisher:
    """The learner's end. `publish` returns a handle that stays valid until the next `publish`."""

    def __init__(self, kind: str, folder: Path | None = None):
        """`folder`: where `file` and `delta` publish."""
        self.kind, self.folder = kind, folder
        self.changes = Changes(folder) if kind == "delta" and folder else None
        self.memory: int | None = None  # shm: the descriptor of an anonymous file
        self.number = 0  # shm: of the publication
        self.held: list[Tensor] = []  # ipc: what the engines may still be reading
        self.group: Any = None  # nccl: the communicator with the engines
        self.sending: threading.Thread | None = None

    def join(self, address: str, port: int, world: int) -> None:
        """nccl: meet the engines, which are ranks 1 and up; this is rank 0. Blocks until all are there."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        self.group = trainer_init({"master_address": address, "master_port": port, "world_size": world})

    def publish(self, tensors: Named, passing: bool = False) -> Handle:
        """`passing`: the tensors are gone when this returns, so whoever reads them later needs copies."""
        self.settle()
        copy = passing and self.kind in ("ipc", "nccl")
        named = [(name, tensor.detach().clone() if copy else tensor.detach()) for name, tensor in tensors]
        handle: Handle = {
            "kind": self.kind,
            "names": [name for name, _ in named],
            "dtypes": [str(t.dtype).removeprefix("torch.") for _, t in named],
            "shapes": [list(t.shape) for _, t in named],
        }
        if self.folder and self.kind in ("file", "delta"):
            with stored(self.folder):
                return handle | (self.changes.publish if self.changes else self._file)(dict(named))
        return handle | getattr(self, f"_{self.kind}")([t for _, t in named])

    def settle(self) -> None:
        """Return when the last publication may be overwritten."""
        if self.sending:
            self.sending.join()
            self.sending = None

    def _file(self, named: dict[str, Tensor]) -> Handle:
        from safetensors.torch import save_file

        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "model.partial"
        save_file({name: t.contiguous() for name, t in named.items()}, partial)
        partial.replace(self.folder / "model.safetensors")
        return {"path": str(self.folder)}

    def _shm(self, tensors: list[Tensor]) -> Handle:
        size = sum(t.nbytes for t in tensors)
        if self.memory is None:
            # Anonymous: it has no name in /dev/shm to be left behind, and ends with the last process that maps it.
            self.memory = os.memfd_create("rlreason-weights")
            os.ftruncate(self.memory, HEADER + size)
        self.number += 1
        with mmap.mmap(self.memory, HEADER + size) as view:
            view[:HEADER] = bytes(HEADER)  # 0: being written. A reader looks again when it has read all.
            start = HEADER
            for t in tensors:
                target = torch.frombuffer(view, dtype=t.dtype, count=t.numel(), offset=start)
                target.copy_(t.reshape(-1))
                start += t.nbytes
            del target  # a mapping with a tensor on it cannot be closed
            view[:HEADER] = self.number.to_bytes(HEADER, "little")
        return {"path": f"/proc/{os.getpid()}/fd/{self.memory}", "number": self.number}

    def _ipc(self, tensors: list[Tensor]) -> Handle:
        from torch.multiprocessing.reductions import reduce_tensor

        self.held = [t.contiguous() for t in tensors]
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        torch.cuda.synchronize()  # the engine reads from another process, which this stream does not order
        return {"ipc_handles": [{uuid: reduce_tensor(t)[1]} for t in self.held]}  # type: ignore[no-untyped-call]

    def _nccl(self, tensors: list[Tensor]) -> Handle:
        def send() -> None:
            for part in buckets([t.nbytes for t in tensors]):
                self.group.broadcast(joined(tensors[part]), src=0, stream=torch.cuda.current_stream())
            torch.cuda.synchronize()

        # The engines join the broadcast when they get the handle, so it cannot be awaited before it is returned.
        self.sending = threading.Thread(target=send, daemon=True)
        self.sending.start()
        return {}


def buckets(sizes: Sequence[int]) -> Iterator[slice]:
    """Which tensors, of these `sizes` in bytes, share a broadcast: a message a tensor would wait for the network each time."""
    start, filled = 0, 0
    for i, size in enumerate(sizes):
        if i > start and filled + size > BUCKET:
            yield slice(start, i)
            start, filled = i, 0
        filled += -(-size // ALIGNED) * ALIGNED
    if sizes:
        yield slice(start, len(sizes))


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Their bytes one after the other: uint8, on their device."""
    parts = [t.contiguous().reshape(-1).view(torch.uint8) for t in tensors]
    return torch.cat([torch.nn.functional.pad(part, (0, -len(part) % ALIGNED)) for part in parts])


def parted(handle: Handle, receive: Callable[[int], Tensor]) -> Iterator[list[tuple[str, Tensor]]]:
    """The tensors of a handle of kind `nccl`, a bucket at a time; `receive(n)`: the next n bytes, as uint8 on the device."""
    dtypes = [getattr(torch, name) for name in handle["dtypes"]]
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(handle["shapes"], dtypes, strict=True)]
    for part in buckets(sizes):
        buffer, start, found = receive(sum(-(-size // ALIGNED) * ALIGNED for size in sizes[part])), 0, []
        for name, dtype, shape, size in zip(
            handle["names"][part], dtypes[part], handle["shapes"][part], sizes[part], strict=True
        ):
            found.append((name, buffer[start : start + size].view(dtype).view(shape)))
            start += -(-size // ALIGNED) * ALIGNED
        yield found


def digest(tensors: Named) -> str:
    """`manifest.weights` of tensors: what those of a directory give, if they are the same."""
    named = sorted(tensors)
    return manifest.weights(
        (name, manifest.NAMES[str(t.dtype).removeprefix("torch.")], list(t.shape),
         [t.detach().cpu().reshape(-1).view(torch.uint8).numpy().data])
        for name, t in named
    )  # fmt: skip


def read(handle: Handle) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a handle of kind `shm` or `file`, valid until the next is asked for.

    Raises `Gone`, at the end too, if they are not those of this publication.
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
        raise Gone(handle["path"]) from error
    try:
        # Private and writable, as torch wants it; nothing is written, so nothing is copied.
        view = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(descriptor)
    _assert_whole(view, handle)
    start = HEADER
    for name, dtype, shape in zip(handle["names"], handle["dtypes"], handle["shapes"], strict=True):
        t = torch.frombuffer(view, dtype=getattr(torch, dtype), count=math.prod(shape), offset=start).view(shape)
        yield name, t
        start += t.nbytes
    _assert_whole(view, handle)


def _assert_whole(view: mmap.mmap, handle: Handle) -> None:
    if (number := int.from_bytes(view[:HEADER], "little")) != handle["number"]:
        raise Gone(f"publication {handle['number']} is {f'replaced by {number}' if number else 'being replaced'}")


@dataclass
class Init:
    """vLLM's name for what an engine must know before its first update."""

    address: str = ""
    port: int = 0
    rank: int = 0
    world: int = 0


@dataclass
class Update:
    """One publication, on its way into an engine."""

    handle: Handle = field(default_factory=dict)


def register() -> None:
    """Teach vLLM's weight-transfer API our handles. Also a vLLM plugin, so that its worker processes know it too."""
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    if "rlreason" in WeightTransferEngineFactory._registry:
        return

    class Engine(WeightTransferEngine):  # type: ignore[misc]
        """The rollout's end: all by itself, but for CUDA IPC and the meeting for NCCL, which are vLLM's."""

        init_info_cls = Init
        update_info_cls = Update
        peer: Any = None
        held: Held | None = None  # delta

        def init_transfer_engine(self, init_info: Init) -> None:
            self._delegate("nccl").init_transfer_engine(
                self.peer.init_info_cls(
                    master_address=init_info.address, master_port=init_info.port,
                    rank_offset=init_info.rank, world_size=init_info.world,
                )
            )  # fmt: skip

        def _delegate(self, kind: str) -> Any:
            if self.peer is None:
                config = WeightTransferConfig(backend=kind)
                self.peer = WeightTransferEngineFactory.create_engine(config, self.vllm_config, self.device, self.model)
            return self.peer

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
            if self.device.type != "cpu":  # vLLM's own version synchronizes whatever the device, and CPU has none
                torch.accelerator.synchronize()

        def receive_weights(self, update_info: Update) -> None:
            handle = update_info.handle
            if handle["kind"] in ("shm", "file"):
                self.model.load_weights(read(handle))
                return
            if handle["kind"] == "delta":
                self.held = self.held or Held()
                self.model.load_weights(self.held.read(handle))
                return
            peer = self._delegate(handle["kind"])
            if handle["kind"] == "nccl":

                def receive(size: int) -> Tensor:
                    buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
                    peer.model_update_group.broadcast(buffer, src=0, stream=torch.cuda.current_stream())
                    return buffer

                for bucket in parted(handle, receive):
                    self.model.load_weights(bucket)
                return
            about = {"names": handle["names"], "dtype_names": handle["dtypes"], "shapes": handle["shapes"]}
            peer.receive_weights(peer.update_info_cls(**about, ipc_handles=handle["ipc_handles"]))

        def shutdown(self) -> None:
            if self.peer is not None:
                self.peer.shutdown()

    WeightTransferEngineFactory.register_engine("rlreason", Engine)
