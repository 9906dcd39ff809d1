"""Programs that mean harm, run for real in every kind of sandbox that stands here, beside honest ones."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from rlreason.rewards.code import code, sandbox
from rlreason.types import Task

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parent.parent.parent
HOSTILE = sorted((ROOT / "tests/hostile").glob("*.py"))
KINDS = [kind for kind in sandbox.KINDS if not sandbox.problem(kind)]
SHORT, LONG = 1.0, 10.0  # seconds: for programs that are to be cut off, for those that are to end by themselves
GRACE = 3.0  # seconds that a cut-off may take beyond its limit, on a busy machine


class Outcome(NamedTuple):
    verdict: float | None
    seconds: float


class Canaries:
    """What a program might harm, and whether it did."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())  # not pytest's, which only its owner may enter
        self.folder.chmod(0o777)
        self.secret = self.folder / "secret"
        self.secret.write_text("the secret")
        self.secret.chmod(0o666)
        self.bystander = subprocess.Popen(["sleep", "600"])
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(self.tcp.getsockname())
        self.abstract = socket.socket(socket.AF_UNIX)
        name = f"rlreason-{secrets.token_hex(8)}"
        self.abstract.bind("\0" + name)
        self.named = socket.socket(socket.AF_UNIX)
        self.named.bind(str(self.folder / "socket"))
        (self.folder / "socket").chmod(0o777)
        for listening in (self.abstract, self.named):
            listening.listen()
        self.before = self.state()
        self.facts = {
            "secret": str(self.secret), "outside": str(self.folder), "repository": str(Path(sandbox.__file__).parent),
            "bystander": self.bystander.pid, "parent": os.getpid(), "port": self.tcp.getsockname()[1], "abstract": name,
            "token": secrets.token_hex(8),
        }  # fmt: skip

    def state(self) -> dict[str, object]:
        limits = Path(f"/proc/{self.bystander.pid}/limits").read_text()
        files = {p.name: (p.read_bytes() if p.is_file() else b"", p.stat().st_mode) for p in self.folder.iterdir()}
        reached = []
        for listening in (self.tcp, self.udp, self.abstract, self.named):
            listening.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                reached.append(listening.recv(100) if listening is self.udp else listening.accept())
        return {
            "alive": self.bystander.poll() is None, "limits": limits, "files": files, "reached": reached,
            "priority": os.getpriority(os.PRIO_PROCESS, self.bystander.pid),
            "affinity": os.sched_getaffinity(self.bystander.pid),
            "planted": [p for p in ("/tmp/planted", "/var/tmp/planted", "/dev/shm/planted", "/tmp/verdict", "/logs/verifier")
                        if os.path.exists(p)],
        }  # fmt: skip

    def close(self) -> None:
        self.bystander.kill()
        self.bystander.wait()
        for s in (self.tcp, self.udp, self.abstract, self.named):
            s.close()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def canaries():
    made = Canaries()
    yield made
    made.close()


def verdict_of(program: Path) -> float:
    return float(program.read_text().split("\n")[1].removeprefix("# verdict: "))


@pytest.fixture(scope="module")
def outcomes(canaries, request) -> dict[tuple[str, str], Outcome]:
    """What became of each program that this session has selected, all of them run first, a few at a time."""
    selected = {item.callspec.params.get("program") for item in request.session.items if hasattr(item, "callspec")}

    def judge(kind: str, program: Path) -> Outcome:
        task = Task("t", "", "answer-to-find", info={"tests": [{"input": json.dumps(canaries.facts) + "\n", "output": "42"}]})
        limit = SHORT if verdict_of(program) == 0 else LONG
        began = time.monotonic()
        value = code(task, f"```python\n{program.read_text()}\n```", seconds=limit, timeout=60, memory=256, isolation=kind)
        return Outcome(value, time.monotonic() - began)

    with pytest.MonkeyPatch.context() as environment, ThreadPoolExecutor(4) as pool:
        environment.setenv("RLREASON_TOKEN", canaries.facts["token"])
        running = {(kind, p.stem): pool.submit(judge, kind, p) for p in HOSTILE if p in selected for kind in KINDS}
        return {key: future.result() for key, future in running.items()}


def test_there_is_a_sandbox_to_test():
    assert KINDS, sandbox.refusal()
    assert sandbox.refusal() == ""
    assert sandbox.available()[0] == KINDS[0]


def test_there_are_at_least_thirty_hostile_programs_each_with_what_it_tries():
    assert len(HOSTILE) >= 30
    assert all(p.read_text().startswith("# ") and verdict_of(p) in (0, 1) for p in HOSTILE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("program", HOSTILE, ids=lambda p: p.stem)
def test_a_hostile_program_is_contained(outcomes, kind, program):
    """One that is not cut off prints 42, the right answer, if each of its attempts failed, and something else if not."""
    outcome = outcomes[kind, program.stem]
    assert outcome.verdict == verdict_of(program)
    assert outcome.seconds < GRACE + (SHORT if outcome.verdict == 0 else LONG)


def test_nothing_outside_was_touched(outcomes, canaries):
    assert canaries.state() == canaries.before


def test_no_process_is_left(outcomes):
    mark = f"rlreason-sandbox-of-{os.getpid()}".encode()
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            commands.append(path.read_bytes())
    assert any(b"pytest" in c for c in commands)
    assert not [c for c in commands if mark in c]


HONEST = {
    "sum": ("print(sum(map(int, input().split())))", "1 2 3", "6"),
    "lines": ("import sys\nfor line in sys.stdin:\n    print(line.strip()[::-1])", "abc\ndef\n", "cba\nfed"),
    "maths": ("import math\nprint(math.comb(50, 25), f'{math.pi:.5f}')", "", "126410606437752 3.14159"),
    "collections": ("from collections import Counter, deque\nprint(Counter(input()).most_common(1)[0], deque([1], 2))",
                    "aab", "('a', 2) deque([1], maxlen=2)"),
    "itertools": ("from itertools import permutations as p\nprint(len(list(p(range(7)))))", "", "5040"),
    "recursion": ("import sys\nsys.setrecursionlimit(10**5)\ndef f(n):\n    return n and 1 + f(n - 1)\nprint(f(20000))",
                  "", "20000"),
    "thread": ("import threading as t\nt.stack_size(1 << 26)\na = t.Thread(target=print, args=(7,))\na.start()\na.join()",
               "", "7"),
    "class": ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nprint(P(int(input())))", "3", "P(x=3)"),
    "exit": ("print(1)\nexit()\nprint(2)", "", "1"),
    "main": ("def main():\n    print(sorted(input().split()))\nif __name__ == '__main__':\n    main()", "b a", "['a', 'b']"),
    "file": ("import random\nrandom.seed(0)\nprint(hash('a') == hash('a'), len(bytes(10**8)))", "", "True 100000000"),
    "asyncio": ("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 5\nprint(asyncio.run(f()))", "", "5"),
    "large": ("import sys\nprint(len(sys.stdin.read()))", "x" * 1_000_000, "1000000"),
    "heap": ("import heapq, bisect, functools, re, decimal, fractions, string, datetime, json, operator, statistics\n"
             "print(heapq.nsmallest(2, [3, 1, 2]))", "", "[1, 2]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_passes(kind, name):
    program, given, expected = HONEST[name]
    task = Task("t", "", info={"tests": [{"input": given, "output": expected}]})
    assert code(task, f"```python\n{program}\n```", seconds=LONG, timeout=60, isolation=kind) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_scratch_folder_is_there_and_starts_empty_each_time(kind):
    program = "import os\nopen('x', 'a').write('1')\nprint(open('x').read(), os.listdir('.'))"
    for _ in range(2):
        cell = sandbox.run(program, b"", sandbox.Limits(wall=LONG), kind)
        assert cell.stdout == b"1 ['x']\n"


@pytest.mark.parametrize("kind", KINDS)
def test_when_the_judge_is_killed_the_program_dies_with_it(kind):
    script = (
        "from rlreason.rewards.code import sandbox\n"
        f"sandbox.run('import time; time.sleep(600)', b'', sandbox.Limits(wall=600), {kind!r})"
    )
    judge = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    mark = f"rlreason-sandbox-of-{judge.pid}".encode()

    def alive(program: bool) -> bool:
        """Is the program, or else anything of its sandbox, among the machine's processes?"""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # ended meanwhile
                command = path.read_bytes().rstrip(b"\0")
                if command.endswith(mark) if program else mark in command:
                    return True
        return False

    def becomes(program: bool, wanted: bool) -> bool:
        end = time.monotonic() + 10
        while alive(program) != wanted and time.monotonic() < end:
            time.sleep(0.02)
        return alive(program) == wanted

    assert becomes(program=True, wanted=True)
    judge.kill()
    judge.wait()
    assert becomes(program=False, wanted=False)
