"""Where the ranks of a process group meet: on the address that was agreed on, and on no other. Knows only torch."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rlreason.errors import Wounded


def meet(backend: str, host: str, port: int, rank: int, world: int, timeout: timedelta = timedelta(minutes=30)) -> None:
    """Join the default process group. Raises `Wounded` where rank 0 finds `port` taken: the next start takes another.

    torch's own store listens on every interface, and asks nobody for a token. So rank 0 opens the socket itself.
    """
    server = listen(host, port) if rank == 0 else None
    store = TCPStore(
        host, port, world, is_master=rank == 0, timeout=timeout,
        master_listen_fd=server.detach() if server else None,  # the store closes it
    )  # fmt: skip
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket of `host` alone, on `port` (0: one that is free). Raises `Wounded` where it is taken."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, kind, protocol)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who was there before us may have closed it just now
    try:
        server.bind(address)
    except OSError as error:
        server.close()
        raise Wounded(f"the learners cannot meet at {host}:{port}: {error.strerror}") from None
    server.listen()
    return server
