"""Two hosts on one machine: namespaces of the kernel, joined by a cable of their own, in which launch/ray/ starts Ray.

Each host has its own network, processes, host name, /etc/hosts and shared memory. The file system is common to both, as
the product wants it. All that belongs to a host ends with its first process, which ends when its standard input does:
whatever becomes of the tests, the kernel leaves no process and no interface behind.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from real import ROOT

sys.path.insert(0, str(ROOT / "tests" / "chaos"))

from world import Running  # noqa: E402

NAMESPACES = ("--net", "--pid", "--uts", "--ipc", "--mount")
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # of a range for documentation
PORT = 6400
# Of a host: a name, /etc/hosts, shared memory and a folder for Ray; then it lasts as long as its standard input.
FIRST = """
set -e
mount --bind "$1/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=700 tmpfs "$1/tmp"
echo "$2" >/proc/sys/kernel/hostname
echo ready
read -r _ || true
"""


@functools.cache
def missing() -> str:
    """Why there can be no hosts here; "" if there can."""
    if sys.platform != "linux":
        return "hosts are namespaces, which only Linux has"
    if os.geteuid():
        return "hosts are namespaces, and only root can join them by a cable"
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux"), ("mount", "mount")):
        if not shutil.which(program):
            return f"there is no program `{program}` here (package {package})"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return tried.returncode and f"no namespaces with a cable can be made here: {tried.stderr.strip()}" or ""


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    folder: Path  # `tmp` in it is memory of this host's own
    first: int  # the number of its first process

    def command(self, *command: object) -> list[str]:
        return ["nsenter", f"--target={self.first}", "--all", "--wd=.", "--", *map(str, command)]

    def start(self, *command: object, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*command), cwd=ROOT, stdin=subprocess.DEVNULL, text=True, **options)  # type: ignore[call-overload]

    def has(self, pid: int) -> bool:
        """Does this process, by its number outside, run on this host?"""
        return _network(pid) == _network(self.first)

    def processes(self) -> list[str]:
        """What runs there beside its first process."""
        found = []
        for process in psutil.process_iter():
            try:
                if self.has(process.pid) and process.pid != self.first and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline())[:100])
            except (OSError, psutil.Error):
                continue
        return found


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


class Pair(Running):
    """`rlreason train` on two hosts: the Ray head and the driver on the first, a Ray node on the second; a CPU each."""

    def __init__(self, hosts: tuple[Host, Host], out: Path, *options: str, **environment: str):
        self.hosts, self.out = hosts, out
        head, worker = hosts
        token = head.folder / "token"
        token.touch(0o600)
        token.write_text(os.urandom(32).hex())
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "RAY_AUTH_TOKEN_PATH": str(token), "PORT": str(PORT), "CPUS": "1", "NODES": "2", "WAIT": "90",
            "LOGS": str(out.parent / "ray"),
        } | environment  # fmt: skip
        self.joined = (out.parent / "worker.log").open("w")
        self.worker = worker.start(
            ROOT / "launch/ray/worker.sh", f"{head.address}:{PORT}",
            env=self.environment | {"RAY_TMPDIR": str(worker.folder / "tmp")}, stdout=self.joined, stderr=self.joined,
        )  # fmt: skip
        self.began = time.monotonic()
        self.process = head.start(
            ROOT / "launch/ray/head.sh", *options, f"out={out}",
            env=self.environment | {"RAY_TMPDIR": str(head.folder / "tmp"), "ADDRESS": head.address},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def host(self, name: str) -> Host:
        """On which host the process of this name (`rollout-0`) runs now."""
        pid = self.pid(name)
        return next(host for host in self.hosts if host.has(pid))

    def started(self, *names: str) -> None:
        """Wait until these processes run."""

        def there() -> bool:
            try:
                return all(self.pid(name) for name in names)
            except AssertionError:
                return False

        self.until(there)


@contextmanager
def two_hosts(resolves: str = "address") -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else. `resolves`: what a host's own name stands for in its /etc/hosts:
    its "address", or "loopback", as Debian installs it."""
    names = ("left", "right")
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rl.", dir="/tmp")))  # short: sockets are in it
        hosts = []
        for name, address in zip(names, ADDRESSES, strict=True):
            folder = base / name
            (folder / "tmp").mkdir(parents=True)
            known = dict(zip(names, ADDRESSES, strict=True)) | ({name: "127.0.1.1"} if resolves == "loopback" else {})
            lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in known.items())]
            (folder / "hosts").write_text("\n".join(lines) + "\n")
            hosts.append(Host(name, address, folder, stack.enter_context(_first(folder, name))))
        left, right = (str(host.first) for host in hosts)
        _ip("link", "add", "name", "eth0", "netns", left, "type", "veth", "peer", "name", "eth0", "netns", right)
        for host in hosts:
            for command in (f"addr add {host.address}/24 dev eth0", "link set lo up", "link set eth0 up"):
                subprocess.run(["nsenter", f"--target={host.first}", "--net", "ip", *command.split()], check=True)
        yield hosts[0], hosts[1]


@contextmanager
def _first(folder: Path, name: str) -> Iterator[int]:
    """The first process of a host; everything on it ends with it."""
    process = subprocess.Popen(
        ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", FIRST, "sh", folder, name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "ready\n", "a host did not start"
        (first,) = psutil.Process(process.pid).children()
        yield first.pid
    finally:
        process.stdin.close()
        process.wait(30)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
