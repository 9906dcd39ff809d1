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

from world import Running

NAMESPACES = ("--net", "--pid", "--uts", "--ipc", "--mount")
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # of a range for documentation
PORT = 6400
# The address is a bridge's, which stays when the cable goes, as it does with the other host.
NETWORK = (
    "link set lo up", "link add eth0 type bridge", "addr add ADDRESS/24 dev eth0", "link set cable master eth0 up",
    "link set eth0 up",
)  # fmt: skip
# Of a host: a name, /etc/hosts, shared memory and a folder for Ray; then it lasts as long as its standard input. By bash,
# which reaps whatever becomes its child.
FIRST = """
set -e
mount --bind "$1/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=700 tmpfs "$1/tmp"
echo "$2" >/proc/sys/kernel/hostname
echo ready
read -r _ || true
umount --lazy "$1/tmp"
rm -r "$1"
rmdir "${1%/*}" 2>/dev/null || true  # by the last
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
    cable = "ip link add one type veth peer name two && ip link add three type bridge"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "sh", "-c", cable], capture_output=True, text=True, check=False)
    return f"no namespaces with a cable can be made here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    folder: Path  # `tmp` in it is memory of this host's own
    first: int  # the number of its first process

    def command(self, *command: object) -> list[str]:
        return ["nsenter", f"--target={self.first}", "--all", "--wd", "--", *map(str, command)]

    def start(self, *command: object, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*command), stdin=subprocess.DEVNULL, text=True, **options)  # type: ignore[call-overload]

    def has(self, pid: int) -> bool:
        """Does this process, by its number outside, run on this host?"""
        return _network(pid) == _network(self.first)


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


class Training(Running):
    """`rlreason train` on a cluster of two hosts, going on."""

    def __init__(self, cluster: Cluster, out: Path, *options: object, **environment: str):
        self.cluster, self.out, self.began = cluster, out, time.monotonic()
        self.process = cluster.hosts[0].start(
            sys.executable, "-m", "rlreason", "train", *options, f"out={out}",
            env=cluster.environment | {"RAY_ADDRESS": f"{cluster.hosts[0].address}:{PORT}"} | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def hosts(self, *names: str) -> list[str]:
        """On which host each of these processes (`rollout-0`) runs, once all of them do."""
        found: list[int] = []

        def there() -> bool:
            try:
                found[:] = map(self.pid, names)
            except AssertionError:
                return False
            return True

        self.until(there)
        return [next(host.name for host in self.cluster.hosts if host.has(pid)) for pid in found]


@dataclass(frozen=True)
class Cluster:
    """A Ray head on the first host and a node on the second, with a CPU each."""

    hosts: tuple[Host, Host]
    environment: dict[str, str]

    def train(self, out: Path, *options: object, **environment: str) -> Training:
        return Training(self, out, *options, **environment)


@contextmanager
def cluster(logs: Path) -> Iterator[Cluster]:
    """Two hosts and Ray on them. `logs`: a folder for what the scripts of launch/ray/ print, and Ray's logs if they fail."""
    with two_hosts() as hosts:
        head, worker = hosts
        token, program, up = (head.folder / name for name in ("token", "program", "up"))
        token.touch(0o600)
        token.write_text(os.urandom(32).hex())
        program.write_text('#!/bin/sh\ntouch "$2"\nexec sleep infinity\n')  # head.sh runs it when both nodes are there
        program.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        common = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        }  # fmt: skip
        own = {"PORT": str(PORT), "CPUS": "1", "WAIT": "90", "LOGS": str(logs), "RLREASON": str(program)}
        with (logs / "head.log").open("w") as said, (logs / "worker.log").open("w") as told:
            script = head.start(
                ROOT / "launch/ray/head.sh", up, stdout=said, stderr=said,
                env=common | own | {"NODES": "2", "ADDRESS": head.address, "RAY_TMPDIR": str(head.folder / "tmp")},
            )  # fmt: skip
            worker.start(
                ROOT / "launch/ray/worker.sh", f"{head.address}:{PORT}", stdout=told, stderr=told,
                env=common | own | {"RAY_TMPDIR": str(worker.folder / "tmp")},
            )  # fmt: skip
            while not up.exists():  # head.sh gives up after WAIT seconds
                assert script.poll() is None, "\n".join((logs / f"{name}.log").read_text() for name in ("head", "worker"))
                time.sleep(0.05)
            yield Cluster(hosts, common)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else. To itself each is 127.0.1.1, as Debian installs it."""
    both = {"left": ADDRESSES[0], "right": ADDRESSES[1]}
    with ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="rl.", dir="/tmp"))  # short: sockets are in it
        stack.callback(shutil.rmtree, base, ignore_errors=True)  # where a host was killed, which could not
        hosts = []
        for name, address in both.items():
            folder = base / name
            (folder / "tmp").mkdir(parents=True)
            known = both | {"localhost": "127.0.0.1", name: "127.0.1.1"}
            (folder / "hosts").write_text("".join(f"{number} {host}\n" for host, number in known.items()))
            hosts.append(Host(name, address, folder, stack.enter_context(_first(folder, name))))
        one, other = (f"name cable netns {host.first}" for host in hosts)
        subprocess.run(f"ip link add {one} type veth peer {other}".split(), check=True)
        for host in hosts:
            for command in NETWORK:
                words = command.replace("ADDRESS", host.address).split()
                subprocess.run(["nsenter", f"--target={host.first}", "--net", "ip", *words], check=True)
        yield hosts[0], hosts[1]


@contextmanager
def _first(folder: Path, name: str) -> Iterator[int]:
    """The first process of a host; everything on it ends with it."""
    process = subprocess.Popen(
        ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", "-c", FIRST, "bash", folder, name],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
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
        process.stdout.close()
