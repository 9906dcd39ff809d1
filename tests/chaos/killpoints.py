"""SIGKILL at many points of saving and publishing, and what is left: always a committed step, whole, and a run that goes
on from it and ends as if nothing had happened.

`every_line` does it without engines, at every line of the code that writes: seconds. `chain` does it to a real run, which
dies at one point after another until it is done.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import dies
import numpy as np
import psutil

from rlreason import checkpoint, storage
from rlreason.config import Config
from rlreason.sampling import Harvest
from rlreason.types import Group, Sample, Task

HERE = Path(__file__).parent
STORAGE = ["rlreason/checkpoint.py:", "rlreason/storage.py:"]
DRIVER = [*STORAGE, "rlreason/body.py:Learners.save", "rlreason/sampling.py:Harvest.save"]
SAVING = ["rlreason/learner.py:Learner.save", "rlreason/learner.py:Learner.export", "rlreason/frozen.py:Frozen.save",
          "deepspeed/runtime/engine.py:DeepSpeedEngine.save_checkpoint",
          "deepspeed/runtime/engine.py:DeepSpeedEngine._save_checkpoint",
          "deepspeed/runtime/checkpoint_engine/torch_checkpoint_engine.py:TorchCheckpointEngine.save"]  # fmt: skip
PUBLISHING = ["rlreason/learner.py:Learner.publish", "rlreason/weights.py:Publisher.publish",
              "rlreason/weights.py:Publisher._shm", "rlreason/weights.py:Publisher._file"]  # fmt: skip
LOADING = ["rlreason/rollout.py:Rollout.load"]
PLACES = {  # a part of the kill points -> the processes that die, where in them, and the function that has to be come to
    "driver": ("-m rlreason", DRIVER, "Learners.save"),
    "save": ("default_worker.py", SAVING, ""),
    "publish": ("default_worker.py", PUBLISHING, ""),
    "load": ("default_worker.py", LOADING, ""),
}


# ---- without engines: every line, in processes that are forked ----


def train(out: Path, done: Callable[[int], None], steps: int = 3) -> None:
    """What a training run writes, in the order in which it does; going on from the newest checkpoint."""
    weights, checkpoints = out / "weights", out / "checkpoints"
    found = checkpoint.newest(checkpoints)
    version = found.state["version"] if found else 0

    def examine() -> None:
        if version == 2:
            checkpoint.write_atomic(out / "step-2.json", json.dumps({"step": version}))
            checkpoint.point(weights / "best", "v2")

    weights.mkdir(parents=True, exist_ok=True)
    if found:
        assert (found.folder / "shard-0").read_bytes() == b"0" * 100 * version
        checkpoint.tidy(out, version, 1)
        examine()
    while version < steps:
        version += 1
        folder, model = checkpoints / f"v{version}", weights / f"v{version}"
        checkpoint.begin(folder)
        for rank in range(2):
            (folder / f"shard-{rank}").write_bytes(str(rank).encode() * 100 * version)
        partial = weights / f"v{version}.partial"
        partial.mkdir(exist_ok=True)
        (partial / "model").write_bytes(b"m" * version)
        if model.exists():
            storage.rename(model, storage.free(weights / f"v{version}.old"))
        storage.rename(partial, model)
        checkpoint.commit(folder, {"version": version, "cursor": 8 * version}, [model])
        done(version)
        checkpoint.point(weights / "last", f"v{version}")
        checkpoint.prune(checkpoints, 1)
        checkpoint.prune_weights(weights, checkpoints)
        examine()
    checkpoint.write_lines(out / "summary.jsonl", [{"steps": version}])


def train_left(out: Path) -> int:
    """The step that a training run can go on from."""
    found = checkpoint.newest(out / "checkpoints")
    if found is None:
        return 0
    assert not found.damaged, found.damaged
    for link in ("last", "best"):
        path = out / "weights" / link
        assert (path / "model").exists() or not path.is_symlink(), f"{link} leads nowhere"
    return int(found.state["version"])


def harvest(out: Path, done: Callable[[int], None], steps: int = 3) -> None:
    """What a stage of kind sample writes."""
    writer = Harvest(_harvested(out))
    while writer.version < steps:
        task, text = Task(f"t{writer.version}", "p", "a"), "a" * (1 + writer.version)
        mask = np.array([False, True])
        sample = Sample(np.zeros(2, np.int32), mask, np.zeros(2, np.float32), text, 0, reward=1.0, parts={"exact": 1.0})
        asyncio.run(_one_step(writer, [Group(task, [sample])]))
        done(writer.version)
    checkpoint.write_lines(out / "answers.jsonl", writer.written())


async def _one_step(writer: Harvest, groups: list[Group]) -> None:
    await writer.step(groups)
    await writer.save(writer.version)


def harvest_left(out: Path) -> int:
    writer = Harvest(_harvested(out))
    assert not writer.damaged, writer.damaged
    assert writer.cursor == writer.version
    return writer.version


def _harvested(out: Path) -> Config:
    config = Config(model="m", out=str(out), kind="sample")
    config.tasks.reward = {"exact": 1.0}
    return config


def every_line(folder: Path, stride: int = 1, where: Sequence[str] = DRIVER) -> dict[str, int]:
    """Die at every line, or each `stride`-th, of `where` that the two above come to.

    Returns how many. Each time what is left is the last step that was committed, or the one that was being, and what comes of
    going on are the same files as of a run that did not die.
    """
    total = 0
    for work, left in ((train, train_left), (harvest, harvest_left)):
        whole = folder / work.__name__ / "whole"
        whole.mkdir(parents=True)
        assert _forked(work, whole, 0, where, folder)[0] == 0
        for point in count(1, stride):
            out = folder / work.__name__ / str(point)
            out.mkdir()
            code, told = _forked(work, out, point, where, folder)
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            assert left(out) in (told, told + 1), f"{work.__name__} died at line {point}, after {told}: {left(out)} is left"
            assert _forked(work, out, 0, where, folder)[0] == 0
            assert _files(out) == _files(whole), f"{work.__name__} died at line {point}"
            total += 1
    return {"points": total}


def _forked(
    work: Callable[[Path, Callable[[int], None]], None], out: Path, at: int, where: Sequence[str], folder: Path
) -> tuple[int, int]:
    """Run `work` in a process of its own that dies at a line; returns its end, and the last step that it said was done."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            if at:
                dies.watch(where, at, folder / "lines")
            work(out, lambda version: os.write(write, bytes([version])) and None)
            code = 0
        finally:
            sys.settrace(None)
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        steps = pipe.read()
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), steps[-1] if steps else 0


def _files(out: Path) -> dict[str, bytes | str]:
    """Every file and link, but for what a crash left half written under a name that nobody reads."""
    return {
        str(p.relative_to(out)): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in sorted(out.rglob("*"))
        if (p.is_symlink() or p.is_file()) and not p.name.endswith(".partial")
    }


# ---- a real run ----


@dataclass
class Death:
    line: str  # the first such, and there it died
    before: int  # the committed step that it went on from
    after: int  # the one that was there when it was dead
    seconds: float


@dataclass
class Deaths:
    all: list[Death] = field(default_factory=list)
    seconds: float = 0.0  # of everything


def lines(command: Callable[[dict[str, str]], subprocess.Popen[str]], place: str, log: Path) -> list[str]:
    """Every distinct line that a run comes to at `place`, in order: the points at which it may die."""
    process = command(armed(place, "", log))
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return list(dict.fromkeys(line.partition(" ")[2] for line in log.read_text().splitlines()))


def armed(place: str, at: str, log: Path) -> dict[str, str]:
    """The environment of a run that dies at the line `at` of `place`, or nowhere."""
    process, where, after = PLACES[place]
    said = {"process": process, "where": where, "after": after, "at": at, "log": str(log)}
    path = os.pathsep.join(map(str, (HERE / "armed", HERE, HERE.parent / "e2e", os.environ.get("PYTHONPATH", ""))))
    return {dies.VARIABLE: json.dumps(said), "PYTHONPATH": path}


def chain(
    command: Callable[[dict[str, str]], subprocess.Popen[str]], out: Path, place: str, points: Sequence[str], log: Path
) -> Deaths:  # fmt: skip
    """Start a run again and again, each time to die at one of `points`, and then let it end. Where it is not the driver
    that dies the run may live on, and end: then the next start finds it done, and the rest of the points are left out.

    Raises `AssertionError` if what a death leaves is not the committed step that was there before it, or a later one.
    """
    deaths, began = Deaths(), time.monotonic()
    for number, at in enumerate(points):
        before, started, seen = committed(out), time.monotonic(), log.with_name(f"{log.name}-{number}")
        process = command(armed(place, at, seen))
        try:
            text = process.communicate(timeout=300)[0]
        finally:
            bury(process, seen)
        if not seen.exists():  # it was done
            assert process.returncode == 0, text
            break
        assert seen.read_text().splitlines()[-1].endswith(f" {at}"), f"it did not die at {at}: {process.returncode}: {text}"
        after = committed(out)
        assert after >= before, f"died at {at}: v{before} was committed, and v{after} is what is left"
        deaths.all.append(Death(at, before, after, time.monotonic() - started))
    process = command({})
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0, text
    deaths.seconds = time.monotonic() - began
    return deaths


def committed(out: Path) -> int:
    """The newest committed step, all of whose files are whole; 0 if there is none yet. Changes nothing."""
    folders = checkpoint.committed(out / "checkpoints")
    if not folders:
        assert not (out / "weights" / "last").is_symlink()
        return 0
    assert not (wrong := checkpoint.problem(folders[0])), wrong
    last = out / "weights" / "last"
    assert (last / "model.safetensors").is_file() or not last.is_symlink(), f"{last} leads to {os.readlink(last)}"
    return int(folders[0].name[1:])


def bury(process: subprocess.Popen[str], log: Path) -> None:
    """Kill a run and whatever it left behind, known by the order to die that it was started with: processes that lost
    their parent are nobody's children."""
    process.kill()
    process.wait()
    left = []
    for one in psutil.process_iter():
        try:
            if f'"{log}"' in one.environ().get(dies.VARIABLE, ""):
                one.kill()
                left.append(one)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    assert not psutil.wait_procs(left, timeout=20)[1], "SIGKILL did not end it"


if __name__ == "__main__":
    print(json.dumps(every_line(Path(sys.argv[1]), int(sys.argv[2]))))
