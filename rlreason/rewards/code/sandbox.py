"""Runs a program that nobody has read: where it can harm nothing, for a bounded time, with bounded means.

Two kinds of walls, the strongest that the machine offers: bubblewrap (namespaces and an empty root around the program), or
Landlock together with the namespaces that the kernel gives us. Inside either, `jail.py` closes the rest: no rights, no new
process, no socket, limits on time, memory, threads, files. Without either nothing is run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import select
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

KINDS = ("bubblewrap", "landlock")  # strongest first
ROOMS = ("/usr", "/bin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/nix/store", "/dev/null")
HERE = Path(__file__).parent
USERS = 0x60000000, 1 << 28  # for root: programs run as a user from this range, one each, who owns nothing
PATIENCE = 10.0  # seconds for the sandbox's own start and end; beyond it the machine is not usable


class SandboxError(RuntimeError):
    """The sandbox failed, which says nothing of the program."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use."""

    wall: float = 4.0  # seconds
    cpu: float = 4.0  # seconds, over all its threads; rounded up to whole ones
    memory: int = 512 << 20  # bytes of address space
    scratch: int = 16 << 20  # bytes in its scratch folder, which is memory too
    output: int = 4 << 20  # bytes that it may print
    threads: int = 32
    files: int = 64  # open at once

    def table(self) -> dict[str, int]:
        """By the names of setrlimit(2)."""
        return {
            "RLIMIT_CPU": max(1, -int(-self.cpu // 1)), "RLIMIT_AS": self.memory, "RLIMIT_FSIZE": self.scratch,
            "RLIMIT_NOFILE": self.files, "RLIMIT_NPROC": self.threads, "RLIMIT_CORE": 0, "RLIMIT_STACK": 32 << 20,
            "RLIMIT_MEMLOCK": 0, "RLIMIT_MSGQUEUE": 0,
        }  # fmt: skip


@dataclass(slots=True)
class Cell:
    """One sandbox and the program in it."""

    process: subprocess.Popen[bytes]
    init: int  # a pidfd of the first process inside; when it has ended, everything inside has; -1: there is none
    stdin: bytes = b""
    stdout: bytes = b""
    messages: bytes = b""  # of the sandbox itself: "ready", if all is well
    ended: str = ""  # why it was ended: wall, output; empty: by itself
    streams: list[IO[bytes]] = field(default_factory=list)


def interpreter() -> str:
    """The Python that programs run with: this one, without its virtual environment."""
    base = Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
    return str(base if base.exists() else Path(sys.executable).resolve())


def start(mode: str, source: str, limits: Limits, kind: str, stdin: bytes = b"", fds: Sequence[int] = ()) -> Cell:
    """Start `source` in a sandbox of that kind, in one of the modes of `inside.py`; `fds` are handed on, as arguments."""
    uid = secrets.randbelow(USERS[1]) + USERS[0] if _may_change_user(kind) else 0
    text = os.memfd_create("program")
    with open(text, "wb", closefd=False) as file:
        file.write(source.encode("utf-8", "surrogatepass"))
    os.lseek(text, 0, os.SEEK_SET)
    python, prefix = interpreter(), os.path.realpath(sys.base_prefix)
    read = [room for room in ROOMS if os.path.lexists(room)]
    if not f"{prefix}/".startswith("/usr/"):
        read.append(prefix)
    want = {
        "kind": kind, "uid": uid, "parent": os.getpid(), "scratch": limits.scratch, "limits": limits.table(), "read": read,
        "run": [
            *(python, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _harness()),
            *(mode, str(text), *map(str, fds), f"rlreason-sandbox-of-{os.getpid()}"),
        ],
        "environment": {"PYTHONHASHSEED": "0", "HOME": "/scratch", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    }  # fmt: skip
    jail = [python, "-I", "-S", "-B", "-c", _text("jail.py"), json.dumps(want)]
    pipe = os.pipe() if kind == "bubblewrap" else None
    try:
        command = [*_bubblewrap(read, pipe[1], uid), *jail] if pipe else jail
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env={},
            pass_fds=[text, *fds, *([pipe[1]] if pipe else [])], bufsize=0,
        )  # fmt: skip
    finally:
        os.close(text)
        if pipe:
            os.close(pipe[1])
    init = _first_inside(pipe[0]) if pipe else -1
    streams = [stream for stream in (process.stdin, process.stdout, process.stderr) if stream]
    return Cell(process, init, stdin, streams=streams)


def watch(cells: Sequence[Cell], limits: Limits) -> None:
    """Feed and read the cells until the last of `cells` has closed its output; then none is left alive.

    The others serve it, and end with it. One that prints too much, or all of them when time is up, is killed.
    """
    deadline, running = time.monotonic() + PATIENCE, False
    try:
        with selectors.DefaultSelector() as selector:
            for cell in cells:
                for stream in cell.streams:
                    os.set_blocking(stream.fileno(), False)
                    selector.register(
                        stream, selectors.EVENT_WRITE if stream is cell.streams[0] else selectors.EVENT_READ, cell
                    )
            main = cells[-1].streams[1]
            while not main.closed:
                if not running and all(cell.messages for cell in cells):
                    deadline, running = time.monotonic() + limits.wall, True
                left = deadline - time.monotonic()
                if left <= 0:
                    cells[-1].ended = "wall"
                    return
                for key, _ in selector.select(left):
                    if not _move(key.data, key.fileobj, limits.output):  # type: ignore[arg-type]
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                        if key.data.ended:
                            return
            with contextlib.suppress(subprocess.TimeoutExpired):  # it closed its output and goes on; not for long
                cells[-1].process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for cell in cells:
            end(cell)


def run(source: str, stdin: bytes, limits: Limits, kind: str) -> Cell:
    """Run a program with that input. SandboxError where the sandbox, not the program, is at fault."""
    cell = start("run", source, limits, kind, stdin)
    watch([cell], limits)
    return cell


@functools.cache
def problem(kind: str) -> str:
    """Why walls of that kind cannot be had here; empty if they can: a program has then been run in them."""
    try:
        cell = run("print(6 * 7)", b"", Limits(wall=PATIENCE), kind)
    except (SandboxError, OSError) as error:
        return str(error)
    return "" if cell.stdout == b"42\n" else f"a first program ended with {cell.process.returncode} {cell.ended}"


def available() -> tuple[str, str]:
    """The strongest kind of walls that stands here, or "", and why not the stronger ones."""
    why: list[str] = []
    for kind in KINDS:
        if not problem(kind):
            return kind, "; ".join(why)
        why.append(f"{kind}: {problem(kind)}")
    return "", "; ".join(why)


def refusal(isolation: str = "auto") -> str:
    """Why programs cannot be run here under that isolation (auto: any kind), and what to do; empty if they can."""
    if isolation not in ("auto", *KINDS):
        return f"isolation is one of auto, {', '.join(KINDS)}; got {isolation!r}"
    kind, why = available() if isolation == "auto" else ("" if problem(isolation) else isolation, problem(isolation))
    if kind:
        return ""
    return (
        f"this machine offers no sandbox for programs that nobody has read ({why}). Install bubblewrap (apt install "
        "bubblewrap), or use a kernel with Landlock (Linux 6.7 or newer), or run them elsewhere: "
        "rewards.options.code.sandbox: http://…"
    )


def chosen(isolation: str = "auto") -> str:
    """The kind of walls to use; SandboxError with the refusal where there is none."""
    if why := refusal(isolation):
        raise SandboxError(why)
    return available()[0] if isolation == "auto" else isolation


def _move(cell: Cell, stream: IO[bytes], most: int) -> bool:
    """Take what there is of a stream, or give it; False when the stream is done with."""
    if stream is cell.streams[0]:
        with contextlib.suppress(BrokenPipeError):  # a program need not read its input
            cell.stdin = cell.stdin[os.write(stream.fileno(), cell.stdin[:65536]) :] if cell.stdin else b""
            return bool(cell.stdin)
        return False
    piece = os.read(stream.fileno(), 65536)
    if stream is cell.streams[1]:
        cell.stdout += piece
        if len(cell.stdout) > most:
            cell.ended = "output"
            return False
    elif len(cell.messages) < 10_000:
        cell.messages += piece
    return bool(piece)


def end(cell: Cell) -> None:
    """Kill all that is left in the cell, and see it dead."""
    try:
        if cell.init < 0:
            cell.process.terminate()  # its supervisor kills the program, and waits for it
        else:
            cell.process.kill()
        cell.process.wait(PATIENCE)
        if cell.init >= 0 and not select.select([cell.init], [], [], PATIENCE)[0]:
            raise SandboxError("the sandbox could not be ended")
    except subprocess.TimeoutExpired:
        cell.process.kill()
        raise SandboxError("the sandbox could not be ended") from None
    finally:
        if cell.init >= 0:
            os.close(cell.init)
        messages = cell.streams[2]
        if not messages.closed:
            cell.messages += messages.read() or b""
        for stream in cell.streams:
            stream.close()
    if cell.messages != b"ready":
        reason = cell.messages.removeprefix(b"ready").decode(errors="replace")[-500:].strip()
        raise SandboxError(f"the sandbox did not start: {reason or 'no answer'}")


def _first_inside(info: int) -> int:
    """A pidfd of the sandbox's first process, which bubblewrap tells as JSON; -1 if it did not get as far."""
    told = b""
    with open(info, "rb", buffering=0) as file:
        while b"}" not in told:
            piece = file.read(4096)
            if not piece:
                return -1
            told += piece
    with contextlib.suppress(ProcessLookupError):  # ended already
        return os.pidfd_open(json.loads(told)["child-pid"])
    return -1


def _bubblewrap(read: Sequence[str], info: int, uid: int) -> list[str]:
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bwrap is not installed")
    command = [program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not uid:  # as root the namespaces need no user namespace, and the program becomes another user
        command += ["--unshare-user", "--cap-add", "CAP_SYS_ADMIN"]  # within; for the scratch folder, then dropped
    command += ["--die-with-parent", "--new-session", "--info-fd", str(info), "--dir", "/scratch"]
    for path in read:
        for folder in reversed(Path(path).parents[:-1]):  # bubblewrap would make them readable by their owner only
            command += ["--perms", "0755", "--dir", str(folder)]
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    return [*command, "--remount-ro", "/", "--"]


def _may_change_user(kind: str) -> bool:
    """May this process become any user (and, for bubblewrap, mount)? Root may, but not in every container."""
    needed = 1 << 6 | 1 << 7 | (1 << 21 if kind == "bubblewrap" else 0)  # CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
    status = Path("/proc/self/status").read_text()
    rights = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    users = [[int(n) for n in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    everybody = any(inside <= USERS[0] and sum(USERS) <= inside + count for inside, _, count in users)
    return rights & needed == needed and everybody


@functools.cache
def _harness() -> str:
    """`inside.py`, for an interpreter that finds nothing of rlreason: what it imports is there before it asks."""
    name = "rlreason.rewards.code.plain"
    plain = f"plain = sys.modules[{name!r}] = types.ModuleType({name!r})\nexec({_text('plain.py')!r}, plain.__dict__)\n"
    return f"import sys, types\n{plain}exec({_text('inside.py')!r})\n"


@functools.cache
def _text(name: str) -> str:
    return (HERE / name).read_text()
