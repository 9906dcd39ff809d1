"""The process group over which weights are broadcast: learner rank 0 and every vLLM worker of the engines that load.

NCCL between GPUs and gloo between CPUs, by the same code. The group is separate from the learners' and from the engines'
own. No wait is without an end: each polls, and gives up when the group was interrupted, when the store that rank 0 holds is
gone, or when nothing has moved for the group's timeout.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from rlreason import pulse
from rlreason.errors import WeightsUnavailable
from rlreason.meeting import listen

INTERRUPTED = "interrupted"  # key of the store: some member will not take part any more
LOOK = 0.1  # seconds between two looks at the store while an operation is waited for
CONNECT = timedelta(seconds=60)  # for members that have all reported at the store, to connect to each other
SPIN = 2e-4  # seconds between two looks at an operation: a small model's broadcast takes some milliseconds


class BroadcastGroup:
    """One member. `open` makes rank 0's end, `enter` another's; both return before the others are there, `connect` waits."""

    def __init__(self, store: TCPStore, rank: int, world: int, device: torch.device, host: str, timeout: float):
        """`host`: the address under which this member is reached. `timeout`: seconds."""
        self.store, self.rank, self.world, self.device, self.host, self.timeout = store, rank, world, device, host, timeout
        self.group: Any = None
        self.interrupted = threading.Event()

    @classmethod
    def open(cls, host: str, world: int, device: torch.device, timeout: float) -> BroadcastGroup:
        """Rank 0, which holds the store on a port of `host` that was free (`port`)."""
        server = listen(host, 0)
        port = server.getsockname()[1]
        store = TCPStore(host, port, world, is_master=True, timeout=CONNECT, wait_for_workers=False,
                         master_listen_fd=server.detach())  # fmt: skip
        return cls(store, 0, world, device, host, timeout)

    @classmethod
    def enter(cls, address: str, port: int, rank: int, world: int, device: torch.device, timeout: float) -> BroadcastGroup:
        """Another member, of the group whose store is at `address`. Raises `WeightsUnavailable` if nobody is there."""
        with _unavailable(f"the learner's store at {address}:{port} cannot be reached"):
            store = TCPStore(address, port, world, is_master=False, timeout=CONNECT, wait_for_workers=False)
        return cls(store, rank, world, device, _address_towards(address, port), timeout)

    @property
    def port(self) -> int:
        return self.store.port

    def connect(self) -> None:
        """Wait for all members, and connect to them. Raises `WeightsUnavailable`."""
        with _unavailable("the broadcast group could not be formed"):
            self.store.set(f"rank/{self.rank}", self.host)
            everybody = [f"rank/{rank}" for rank in range(self.world)]
            self._wait(lambda: self.store.check(everybody), 0.005, "waiting for the engines that will load weights")
            if self.store.check([INTERRUPTED]):  # before this member came
                raise WeightsUnavailable("the broadcast group was interrupted")
            # A connection of its own: a constructor that waits for a member must not keep `interrupt` from the store.
            self.group = _process_group(PrefixStore("group", self._client()), self.rank, self.world, self.device, self.host)

    def _client(self) -> TCPStore:
        """Another connection to the store."""
        return TCPStore(self.store.host, self.store.port, self.world, is_master=False, timeout=CONNECT, wait_for_workers=False)

    def broadcast(self, tensor: Tensor) -> None:
        """Send `tensor` from rank 0, or receive into it; complete when this returns, on the current stream too.

        Raises `WeightsUnavailable`.
        """
        options = torch.distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        with _unavailable("the broadcast of weights was cut off"):
            if self.group is None or self.interrupted.is_set():
                raise WeightsUnavailable("the broadcast group was interrupted")
            work = self.group.broadcast([tensor], options)
            self._wait(work.is_completed, SPIN, "broadcasting weights")
            work.wait()  # raises what went wrong, and orders the current stream after the one that communicated

    def interrupt(self) -> None:
        """Make every member give up, from any thread: somebody is lost."""
        self.interrupted.set()
        with suppress(RuntimeError):  # the store is gone, which the others see by themselves
            self._client().set(INTERRUPTED, "1")

    def close(self) -> None:
        """Leave the group and free what it holds, without waiting for others."""
        self.interrupted.set()
        if self.group is not None:
            # gloo's destructor waits for operations that were given up, and those for a member that may be stopped: the
            # last reference has to be the thread's.
            only = [self.group]
            self.group = None
            threading.Thread(target=_abort, args=(only,), daemon=True).start()

    def _wait(self, done: Callable[[], bool], period: float, doing: str) -> None:
        began = looked = time.monotonic()
        while not done():
            now = time.monotonic()
            if now - looked > LOOK:
                looked = now
                pulse.beat(doing)  # this process works; whoever is waited for is found by its own heartbeat
                if self.interrupted.is_set() or self.store.check([INTERRUPTED]):
                    raise WeightsUnavailable("the broadcast group was interrupted")
                if now - began > self.timeout:
                    raise WeightsUnavailable(f"no progress for {self.timeout:g} s while {doing}")
            time.sleep(period)


class _unavailable:
    """Report errors of the network and of other members as `WeightsUnavailable`."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        # torch's own (DistNetworkError, DistStoreError, DistBackendError) and gloo's are RuntimeErrors, as is running out of
        # memory, which is no fault of the group.
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            raise WeightsUnavailable(f"{self.what}: {error}") from error


def _process_group(store: Any, rank: int, world: int, device: torch.device, host: str) -> Any:
    """A backend of torch.distributed that is nobody's default group."""
    if device.type == "cuda":
        options = torch.distributed.ProcessGroupNCCL.Options()
        options._timeout = timedelta(minutes=30)  # of NCCL's own watchdog, which ends the process; ours come first
        return torch.distributed.ProcessGroupNCCL(store, rank, world, options)
    options = torch.distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = CONNECT
    # By the address that the others reach: a host's name may stand for 127.0.1.1.
    options._devices = [torch.distributed.ProcessGroupGloo.create_device(hostname=host)]
    group = torch.distributed.ProcessGroupGloo(store, rank, world, options)
    group.set_timeout(timedelta(days=1))  # of an operation; `_wait` gives up before
    return group


def _abort(only: list[Any]) -> None:
    """Abort and destroy the group in `only`, which is emptied."""
    with suppress(RuntimeError):
        only.pop().abort()


def _address_towards(host: str, port: int) -> str:
    """This machine's address on the way to `host`."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as s:
        s.connect(address)  # sends nothing: UDP
        return str(s.getsockname()[0])
