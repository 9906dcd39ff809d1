"""Rewards and programs that misbehave, answers that mean harm, and where all that is shown. Cases 18 to 27, 73 and 75."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from case import Case, Seen
from real import ROOT, rlreason

from rlreason.config import RewardsConfig
from rlreason.errors import RolloutError
from rlreason.rewards.code import code
from rlreason.rewards.maths import math
from rlreason.rewards.pool import AUDIT, Pool, Verdict
from rlreason.rewards.pool.budget import Budget
from rlreason.types import Group, Sample, Task

MINE = """
import random, re, time

def size(task, text): return len(text)
def naps(task, text): return time.sleep(0.05)
def raises(task, text): return {}[text]
def loops(task, text):
    while True: pass
def regex(task, text): return re.match("(a|aa)+$", "a" * 100 + "b") is None  # in C: it holds the GIL
def power(task, text): return 10 ** 10 ** 10 > 0
def eats(task, text): return len(bytearray(10 << 30))
def grows(task, text):
    kept = []
    while True: kept.append(bytearray(1 << 24))
def nan(task, text): return float("nan")
def text(task, text): return "good"
def pair(task, text): return [1.0, 2.0]
def unknown(task, text): return None
def dice(task, text): return random.random()
def by_hash(task, text): return hash("seeded in each process anew") % 1000
def letter(task, text): return ord(text[0])
"""


def judged(folder: Path, *answers: tuple[str, str], first: int = 0, **config: Any) -> tuple[list[Verdict], float]:
    """(reward, text) of a user's own, judged side by side by two processes; and the seconds that took. `first`: answers
    that take a moment, so that both processes are up."""
    (folder / "mine.py").write_text(MINE)
    sys.path.insert(0, str(folder))
    begun = time.monotonic()

    async def run() -> list[Verdict]:
        given = RewardsConfig(**{"timeout": 0.7, "memory": 1.0} | config)
        async with Pool(given, ["mine.size"], folder / "log") as pool:
            await asyncio.gather(*(pool.judge(Task("0", "p"), "", {"mine.naps": 1.0}) for _ in range(first)))
            judging = [pool.judge(Task(str(i), "p"), text, {f"mine.{name}": 1.0}) for i, (name, text) in enumerate(answers)]
            return await asyncio.gather(*judging)

    try:
        return asyncio.run(run()), time.monotonic() - begun
    finally:
        sys.path.remove(str(folder))


def sample(verdict: Verdict, text: str = "x") -> Sample:
    tokens = np.ones(2, np.int32)
    return Sample(tokens, np.ones(2, np.bool_), np.zeros(2, np.float32), text, 0, False, *verdict)


def alone(folder: Path, name: str, cause: str) -> Seen:
    """One of 41 answers misbehaves: it alone is lost, and how is known."""
    answers = [("size", "four")] * 20 + [(name, "x")] + [("size", "four")] * 20
    verdicts, seconds = judged(folder, *answers)
    (odd,) = verdicts[20:21]
    assert [v.reward for v in verdicts if v is not odd] == [4.0] * 40
    assert odd.reward is None, odd
    assert re.match(cause, odd.failures[f"mine.{name}"]), odd
    return Seen(f"'{odd.failures[f'mine.{name}']}' after {seconds:.1f} s; the 40 others judged")


def raising(folder: Path) -> Seen:
    verdicts, _ = judged(folder, ("size", "four"), ("size", "two"), ("raises", "x"), ("size", "a"))
    group = Group(Task("7", "p"), [sample(verdict) for verdict in verdicts])
    assert [s.reward for s in group.judged()] == [4.0, 3.0, 1.0]
    told: list[str] = []
    budget = Budget(0.5, 4, lambda event, **details: told.append(details["cause"]), told.append)
    budget.look(group)
    assert told[0].startswith("raised KeyError: 'x' (mine.py:6)")
    lost = Group(Task("8", "p"), [sample(verdicts[2])] * 4)
    try:
        for _ in range(3):
            budget.look(lost)
    except RolloutError as error:
        return Seen(f"1 of 4 left out, 3 compared; '{told[0]}' in events.jsonl; later exit 4: {str(error)[:76]} …")
    raise AssertionError("the run did not end")


def hanging(folder: Path) -> Seen:
    return alone(folder, "loops", "hung for more than 0.7 s and was killed")


def holding(folder: Path) -> Seen:
    first = alone(folder, "regex", "hung for more than 0.7 s and was killed")
    second = alone(folder, "power", "hung for more than 0.7 s and was killed|raised MemoryError")
    return Seen(f"regular expression: {first.text}; 10**10**10: {second.text}")


def eating(folder: Path) -> Seen:
    first = alone(folder, "eats", "raised MemoryError")
    second = alone(folder, "grows", "raised MemoryError|hung for more than|died of signal")
    return Seen(f"10 GiB at once: {first.text}; bit by bit: {second.text}")


def no_number(folder: Path) -> Seen:
    verdicts, _ = judged(folder, *((name, "x") for name in ("nan", "text", "pair", "unknown")))
    told = [next(iter(v.failures.values()), "") for v in verdicts]
    assert told == ["gave no finite number: nan", "gave no number: 'good'", "gave no number: [1.0, 2.0]", ""], told
    assert [v.reward for v in verdicts] == [None] * 4
    said: list[str] = []
    Budget(1, 4, lambda *_, **__: None, said.append).look(Group(Task("7", "p"), [sample(v) for v in verdicts]))
    assert said[0].startswith("the reward mine.nan gave no finite number: nan, on sample 0 of task 7")
    return Seen(f"'{said[0][:62]}'; None means unjudged, and is no fault")


STRANGE = {
    "nested": "(" * 100_000 + ")" * 100_000, "boxes": r"\boxed{" * 50_000, "a megabyte": "9" * 1_000_000, "null": "\x00" * 1000,
    "surrogates": "\ud800\udfff" * 1000, "tags": "<answer>" * 100_000, "code": "```python\n" * 100_000,
}  # fmt: skip


def strange(folder: Path) -> Seen:
    names = ["math", "exact", "numeric", "format", "choice", "repetition", "readable", "code"]
    slowest, told = 0.0, ""

    async def run() -> None:
        nonlocal slowest, told
        async with Pool(RewardsConfig(timeout=10), names, folder / "log") as pool:
            task = Task("0", "p", "5", info={"tests": [{"input": "", "output": "5"}], "choices": ["a", "b"]})
            await pool.judge(task, "5", dict.fromkeys(names, 1.0))
            for kind, text in STRANGE.items():
                begun = time.monotonic()
                verdict = await pool.judge(task, text, dict.fromkeys(names, 1.0))
                seconds = time.monotonic() - begun
                assert not verdict.failures, f"{kind}: {verdict.failures}"
                assert verdict.parts["math"] in (0.0, None), kind
                if seconds > slowest:
                    slowest, told = seconds, kind

    asyncio.run(run())
    assert slowest < 10, f"{told}: {slowest:.1f} s"
    return Seen(f"{len(STRANGE)} kinds through {len(names)} rewards: none failed, the slowest ({told}) took {slowest:.1f} s")


def programs(folder: Path) -> Seen:
    """All of tests/hostile is in tests/e2e/test_sandbox.py; here those that the catalogue names."""
    from test_sandbox import HOSTILE, Canaries, verdict_of  # not above: pytest wants to be the first to import its tests

    names = ["loop", "fork_bomb", "write_10_gb", "reads_shadow", "tcp_out", "kills_parent", "writes_verdict"]
    chosen = [path for path in HOSTILE if path.stem in names]
    assert len(chosen) == len(names)
    canaries = Canaries()

    def run(path: Path) -> tuple[float, float | None]:
        facts = json.dumps(canaries.facts)
        task = Task("t", "", "answer-to-find", info={"tests": [{"input": facts + "\n", "output": "42"}]})
        begun = time.monotonic()
        seconds = 1.0 if verdict_of(path) == 0 else 10.0
        verdict = code(task, f"```python\n{path.read_text()}\n```", seconds=seconds, timeout=60, memory=256)
        return time.monotonic() - begun, verdict

    try:
        with ThreadPoolExecutor(2) as threads:
            found = dict(zip(chosen, threads.map(run, chosen), strict=True))
        for path, (_, verdict) in found.items():
            assert verdict == verdict_of(path), f"{path.stem}: {verdict}"
        assert canaries.state() == canaries.before, "something outside was touched"
    finally:
        canaries.close()
    slowest = max(seconds for seconds, _ in found.values())
    return Seen(f"{', '.join(names)}: a verdict each, the slowest in {slowest:.1f} s; nothing outside was touched")


@contextmanager
def sandbox(port: int = 0) -> Iterator[int]:
    """A remote sandbox that prints 3; its port."""

    class Prints(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"status": "Success", "run_result": {"status": "Finished", "stdout": "3"}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", port), Prints)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sandbox_down(folder: Path) -> Seen:
    """Eight answers wait while it is down, and are judged when it is back; one that never comes back ends the run."""
    with sandbox() as port:
        pass  # it is down again, and its port is known
    config = RewardsConfig(options={"code": {"sandbox": f"http://127.0.0.1:{port}"}})
    program, task = "```python\nprint(3)\n```", Task("0", "p", info={"tests": [{"input": "", "output": "3"}]})

    async def outage() -> tuple[list[Verdict], float, float]:
        async with Pool(config, ["code"], folder / "log") as pool:
            asking = [asyncio.ensure_future(pool.judge(task, program, {"code": 1.0})) for _ in range(8)]
            done, _ = await asyncio.wait(asking, timeout=3)
            assert not done, "an answer was given up"
            begun = time.monotonic()
            with sandbox(port):
                await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                recovery = time.monotonic() - begun
                verdicts = await asyncio.gather(*asking)
            return verdicts, recovery, time.monotonic() - begun

    async def ended() -> str:
        async with Pool(config, ["code"], folder / "log", away=2) as pool:
            try:
                await pool.judge(task, program, {"code": 1.0})
            except RolloutError as error:
                return str(error)
        raise AssertionError("it went on")

    verdicts, recovery, seconds = asyncio.run(outage())
    assert [v.reward for v in verdicts] == [1.0] * 8
    assert not any(v.failures for v in verdicts)
    told = asyncio.run(ended())
    assert told.startswith("the reward code could not be asked for 2 s: raised rlreason.rewards.code.Away"), told
    return Seen(f"down for 3 s: 8 of 8 judged, all {seconds:.1f} s after it was back; never back: exit 4, {told[:47]} …",
                recovery=recovery, lost="none")  # fmt: skip


TRICKS = {  # answer -> what it earns where 5 is right
    r"\boxed{5}, but rather \boxed{4}": 0, r"\boxed{4}, no: \boxed{5}": 1, r"\boxed{4,5}": 0, r"\boxed{\{4,5\}}": 0,
    r"\boxed{4 \text{ or } 5}": 0, r"\boxed{1}\boxed{2}\boxed{3}\boxed{4}\boxed{5}\boxed{6}": 0,
    r"What is 2 + 3? Write \boxed{5}.": 0, r"What is 2 + 3? Write \boxed{5}. \boxed{5}": 1,
    r"<think>\boxed{5}</think> \boxed{6}": 0, "The answer is not 5": 0, r"\boxed{5": 0,
}  # fmt: skip


def hacking(folder: Path) -> Seen:
    task = Task("0", r"What is 2 + 3? Write \boxed{5}.", "5")
    for text, earned in TRICKS.items():
        assert math(task, text) == earned, f"{text}: {math(task, text)}"
    assert math(Task("0", "p", r"\{4,5\}"), r"\boxed{\{5,4\}}") == 1
    return Seen(
        f"{len(TRICKS)} of {len(TRICKS)} by the rule: the last box counts, a set is a set, the prompt's own box is none"
    )


def noisy(folder: Path) -> Seen:
    answers = [("dice", "x")] * AUDIT + [("letter", "x")] * AUDIT + [("by_hash", "x")] * 24 * AUDIT
    verdicts, _ = judged(folder, *answers, first=40, timeout=5)
    failed = [v for v in verdicts if v.failures]
    told = sorted({name for v in failed for name in v.failures})
    assert told == ["mine.by_hash", "mine.dice"], told
    assert all(v.reward is None for v in failed)
    said: list[str] = []
    Budget(0.5, 64, lambda *_, **__: None, said.append).look(Group(Task("7", "p"), [sample(v) for v in verdicts[:AUDIT]]))
    assert re.search(r"mine.dice is not deterministic: it gave [\d.]+ and then [\d.]+ for the same answer", said[0]), said
    return Seen(f"found by the {AUDIT}th answer: '{said[0][11:86]}'; that sample is left out; so found: {', '.join(told)}")


SHOW = """
import sys
from rlreason.display import Display
sys.stdout.reconfigure(errors="replace")  # as the command does
with Display("caf\\xe9", 2) as display:
    for step in (1, 2):
        display.step({"step": step, "reward": 0.5, "loss": float("nan"), "time/step": 1.0, "time/elapsed": 1.0 * step,
                      "time/tokens_per_second": 3.0, "time/rollout": 1.0})
    display.say("caf\\xe9 \\ud800 \\u202e \\x85 " + "x" * 300)
    display.table([["what", "how"], ["\\u00d7", "\\u4e2d"]])
"""
CONFIG = ["-m", "rlreason", "config", "recipes/quickstart.yaml"]
PLACES = {
    "LANG=C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Windows-1252": {"PYTHONIOENCODING": "cp1252"},
    "20 columns": {"COLUMNS": "20"},
    "all of them": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "TERM": "dumb"},
}


def shown(folder: Path) -> Seen:
    """As a pipe and as a terminal of 20 columns, in places that know few characters."""
    (folder / "show.py").write_text(SHOW)
    recipe = folder / "run.yaml"
    recipe.write_bytes(f"extends: [{ROOT}/recipes/debug.yaml]\nmodel: caf\xe9\n".encode("cp1252"))
    for place, environment in PLACES.items():
        for arguments, terminal in (([folder / "show.py"], False), ([folder / "show.py"], True), (CONFIG, False)):
            status, text = show(arguments, environment, terminal)
            assert status == 0, f"{place}, terminal {terminal}: {text[-1000:]}"
            assert "lr" in text or "reward" in text
    wrong = rlreason("train", recipe, out=folder, timeout=60, LC_ALL="C")
    assert wrong.code == 2, wrong.text
    assert "run.yaml:2: is not UTF-8 (byte 0xe9); save it as UTF-8" in wrong.text
    return Seen(
        f"{len(PLACES)} places, pipe and terminal: all shown; a recipe in Windows-1252: exit 2, 'run.yaml:2: is not UTF-8'"
    )


def show(arguments: Sequence[str | Path], environment: dict[str, str], terminal: bool) -> tuple[int, str]:
    """Run Python, its output a pipe or a terminal; returns its status and what it said."""
    ours, theirs = os.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=os.environ | {"TERM": "xterm", "PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # how a terminal tells its end
        pass
    finally:
        os.close(ours)
    return process.wait(30), said.decode(errors="replace")


def megabyte(folder: Path) -> Seen:
    """What a person or a log is told of an answer of a megabyte is short: the event, the display, a message."""
    text = "\x1b[2J\ud800" + "x" * 1_000_000
    verdicts, _ = judged(folder, ("raises", text), ("size", text))
    assert len(verdicts[0].failures["mine.raises"]) < 400
    events: list[dict[str, Any]] = []
    said: list[str] = []
    budget = Budget(0.0, 2, lambda event, **details: events.append(details), said.append)
    try:
        budget.look(Group(Task("7", "p"), [sample(v, text) for v in verdicts]))
        raise AssertionError("the run did not end")
    except RolloutError as error:
        ended = str(error)
    longest = max(len(json.dumps(events[0])), len(said[0]), len(ended))
    assert longest < 2000, longest
    assert "\x1b" not in said[0] + ended
    recipe = folder / "run.yaml"
    recipe.write_text(f"seed: {'z' * 900_000}\nmodel: m/m\nout: o\ntasks: {{generate: add}}\n")
    told = rlreason("train", recipe, out=folder, timeout=60)
    assert told.code == 2
    assert len(told.text) < 2000
    return Seen(f"a failure's event, line and message: {longest} characters at most; a recipe's 900 kB value: {len(told.text)}")


CASES = [
    Case(18, "reward raises", "the sample is left out of its group, never 0; told once; past rewards.failures exit 4", raising),
    Case(19, "reward hangs in Python", "its process is killed and replaced; the other answers are judged", hanging),
    Case(20, "reward hangs and holds the GIL", "the same", holding),
    Case(21, "reward eats memory", "it meets its limit (rewards.memory), fails alone and is counted", eating),
    Case(22, "reward gives NaN, text, a list or None", "named with function and sample; None: cannot be judged", no_number),
    Case(23, "answers nested deeply, of a megabyte, null, surrogates", "bounded time; nothing fails", strange),
    Case(24, "generated code: loop, fork bomb, 10 GB, /etc/shadow, socket, kill, forged verdict",
         "contained; a verdict each; nothing outside is touched", programs),
    Case(25, "remote sandbox down", "answers wait, asked again with back-off; back: none is lost; not back in 300 s: exit 4",
         sandbox_down),
    Case(26, "reward hacking: several boxes, sets, the prompt's echo", "one documented rule, which none of them gets around",
         hacking),
    Case(27, "reward that is not deterministic", "one answer in 64 is judged twice: told with both numbers, and left out",
         noisy),
    Case(73, "no terminal, 20 columns, LANG=C, Windows-1252", "all is shown, with ? for what cannot be", shown),
    Case(75, "answer of a megabyte in logs", "events, display and messages have a short part of it", megabyte),
]  # fmt: skip
