"""A small run with real parts, for harm to be done to; and how to look at it meanwhile."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from case import Seen
from real import ROOT, command, make_model

from rlreason import ledger

MOMENT = 0.02  # seconds between two looks


@functools.cache
def shared() -> Path:
    """A model and task files, made once for all cases of this process."""
    folder = Path(tempfile.mkdtemp(prefix="rlreason-chaos-"))
    rows = [{"prompt": f"say {i % 10}: ", "answer": str(i % 10), "response": f"say {i % 10}", "id": f"digit-{i}",
             "reward": ["real.letters", "exact"]} for i in range(400)]  # fmt: skip
    (folder / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model("qwen2-tied", folder / "made")
    return folder


def options(out: Path) -> list[str]:
    """Of a run of the debug recipe with two engines, sixty short steps and a checkpoint every five."""
    made = shared()
    return [f"model={made / 'made' / 'model'}", f"tasks.path={made / 'digits.jsonl'}", f"out={out}", "rollout.workers=2",
            "loop.steps=60", "loop.save_every=5", "eval.tasks=0"]  # fmt: skip


class Running:
    """`rlreason train`, going on."""

    def __init__(self, out: Path, *more: str, **environment: str):
        self.out, self.began = out, time.monotonic()
        self.process = command("train", "recipes/debug.yaml", *options(out), *more, **environment)

    def rows(self, name: str = "metrics") -> list[dict]:
        path = self.out / f"{name}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def events(self, event: str, **details: object) -> list[dict]:
        return [row for row in self.rows("events") if row["event"] == event and details.items() <= row.items()]

    def until(self, what: Callable[[], object], seconds: float = 120) -> None:
        """Wait; the command must not end meanwhile."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, f"it ended: {self.process.communicate()[0][-2000:]}"
            assert time.monotonic() < deadline, f"nothing came of it in {seconds} s: {self.rows('events')[-3:]}"
            time.sleep(MOMENT)

    def step(self, number: int) -> None:
        self.until(lambda: len(self.rows()) >= number)

    def pid(self, name: str) -> int:
        """Of an actor: the process of Ray's that writes this log."""
        log = str((self.out / "logs" / f"{name}.log").resolve())
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/fd/1") == log and process.cmdline()[0].startswith("ray::"):
                    return process.pid
            except (OSError, IndexError, psutil.Error):
                continue
        raise AssertionError(f"there is no process that writes {log}")

    def strike(self, name: str, what: int = signal.SIGKILL) -> float:
        """Send an actor a signal; returns when, by the wall clock."""
        os.kill(self.pid(name), what)
        return time.time()

    def end(self, seconds: float = 240) -> tuple[int, str]:
        try:
            text = self.process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
                process.kill()
            raise AssertionError(f"it did not end in {seconds} s: {self.rows('events')[-3:]}") from None
        return self.process.returncode, text

    def whole(self, steps: int = 60) -> ledger.Audit:
        """It ended well, and every task that was asked was trained on once, dropped for a reason, or is pending."""
        code, text = self.end()
        assert code == 0, f"exit {code}: {text[-2000:]}"
        assert [row["step"] for row in self.rows()] == [*range(1, steps + 1)]
        audit = ledger.audit(self.out)
        assert not audit.wrong, audit.wrong
        return audit


def by_test(*names: str) -> Callable[[Path], Seen]:
    """A case that tests show already: they are run, once for all cases that name them."""
    return lambda folder: tested(names)


@functools.cache
def tested(names: tuple[str, ...]) -> Seen:
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:]
    last = run.stdout.strip().splitlines()[-1]
    return Seen(f"{last.split(' in ')[0]} in {time.monotonic() - began:.0f} s: {names[0].split('::')[-1].split('[')[0]}")
