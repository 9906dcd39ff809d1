"""Models and task files such as users bring, and a look at what the tests leave behind."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
import pytest
from real import make_model


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    made: dict[str, Path] = {}

    def model(family: str) -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return model


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A user's task file: prompts as text, and a reward of their own that a random model earns in part."""
    path = tmp_path_factory.mktemp("tasks") / "digits.jsonl"
    rows = [{"prompt": f"say {i % 10}: ", "answer": str(i % 10), "reward": ["real.letters", "exact"]} for i in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind():
    """No process below this one, no file in /dev/shm, whatever the tests did."""
    before = set(os.listdir("/dev/shm"))
    yield
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        processes = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        files = {f for f in set(os.listdir("/dev/shm")) - before if _ours(f)}
        if not processes and not files:
            return
        time.sleep(0.5)
    assert not processes, f"left running: {[' '.join(p.cmdline())[:100] for p in processes]}"
    assert not files, f"left in /dev/shm: {files}"


def _ours(name: str) -> bool:
    """Another run on this machine may have files there too: ours are those that no living process maps."""
    for process in psutil.process_iter():
        try:
            if any(name in m.path for m in process.memory_maps()):
                return False
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return True
