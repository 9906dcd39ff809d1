"""SIGKILL at many points of saving, publishing and loading, and what is left: always a committed step, whole, and a run that
goes on from it and ends as if nothing had happened.

`every_line` does it without engines, at every line of the code that writes: seconds. `restarted` and `replaced` do it to a
real run: the driver dies at one point after another, and is started again; or one learner or engine after the other does,
and is replaced within the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import dies
import numpy as np
import psutil

from rlreason import checkpoint, ledger, storage
from rlreason.config import Config
from rlreason.sampling import Harvest
from rlreason.types import Group, Sample, Task

HERE = Path(__file__).parent
WRITING = ["rlreason/checkpoint.py:", "rlreason/storage.py:", "rlreason/sampling.py:Harvest.save"]
ROLES = {  # who dies -> its command line, the module from whose import on it is watched, and where; see `dies`
    "driver": ("-m rlreason", "rlreason.worker", [
        "rlreason/body.py:Learners.publish", "rlreason/history.py:History.load", "rlreason/fleet.py:Rollouts.load",
        "rlreason/fleet.py:Rollouts._load", "rlreason/body.py:Learners.save", "rlreason/body.py:Learners._commit",
        "rlreason/checkpoint.py:", "rlreason/storage.py:"]),
    "learner": ("default_worker.py", "rlreason.meeting", [
        "rlreason/learner.py:Learner.publish", "rlreason/weights/publisher.py:Publisher.publish",
        "rlreason/weights/publisher.py:Publisher._shm",
        "rlreason/learner.py:Learner.save", "deepspeed/runtime/engine.py:DeepSpeedEngine.save_checkpoint",
        "deepspeed/runtime/engine.py:DeepSpeedEngine._save_checkpoint", "torch/serialization.py:_save",
        "rlreason/learner.py:Learner.export", "transformers/modeling_utils.py:PreTrainedModel.save_pretrained"]),
    "engine": ("default_worker.py", "rlreason.rewards.pool", [
        "rlreason/rollout.py:Rollout.load", "rlreason/weights/receiver.py:load", "rlreason/weights/receiver.py:Receiver",
        "rlreason/weights/reader.py:read", "rlreason/weights/reader.py:_assert_whole"]),
}  # fmt: skip
PUBLISHING = ("Learner.publish", "Publisher", "Learners.publish", "History", "Rollouts")  # functions; the others save
ROUNDS = 3  # a process dies in the first, second or third publication of its life, or what follows it


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


def every_line(folder: Path, stride: int = 1, where: Sequence[str] = WRITING) -> dict[str, int]:
    """Die at every line, or each `stride`-th, of `where` that the two above come to.

    Returns how many. Each time what is left is the last step that was committed, or the one that was being, and what comes of
    going on are the same files as of a run that did not die.
    """
    total = 0
    for work, left in ((train, train_left), (harvest, harvest_left)):
        whole = folder / work.__name__ / "whole"
        whole.mkdir(parents=True)
        assert _forked(work, whole, 0, where)[0] == 0
        for point in count(1, stride):
            out = folder / work.__name__ / str(point)
            out.mkdir()
            code, told = _forked(work, out, point, where)
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            assert left(out) in (told, told + 1), f"{work.__name__} died at line {point}, after {told}: {left(out)} is left"
            assert _forked(work, out, 0, where)[0] == 0
            assert _files(out) == _files(whole), f"{work.__name__} died at line {point}"
            total += 1
    return {"points": total}


def _forked(work: Callable[[Path, Callable[[int], None]], None], out: Path, at: int, where: Sequence[str]) -> tuple[int, int]:
    """Run `work` in a process of its own that dies at a line; returns its end, and the last step that it said was done."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            if at:
                dies.watch(where, dies.nth(at))
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


Start = Callable[[dict[str, str]], "subprocess.Popen[str]"]


@dataclass
class Deaths:
    lines: list[str]  # in order
    recovery: list[float]  # seconds from a death to the next useful work; not of those that another death came before
    lost: str  # work that had to be done again

    def __str__(self) -> str:
        published = sum(map(publishes, self.lines))
        parts = f"{published} publishing, {len(self.lines) - published} saving" if published else "all loading"
        return (f"{len(self.lines)} deaths at as many lines ({parts}), back after {median(self.recovery):.1f} s, at worst "
                f"{max(self.recovery):.1f} s")  # fmt: skip


def armed(folder: Path, **points: Sequence[str] | None) -> dict[str, str]:
    """The environment of a run in which those of a role die at `points`: each at the first line of them that nobody has
    died at. None kills nobody, and lists the lines that are come to, in `folder`."""
    orders: list[dict[str, Any]] = []
    for role, lines in points.items():
        process, module, where = ROLES[role]
        (folder / role / "deaths").mkdir(parents=True, exist_ok=True)
        orders.append({"process": process, "module": module, "where": where, "points": lines, "rounds": ROUNDS,
                       "folder": str(folder / role)})  # fmt: skip
    path = os.pathsep.join(map(str, (HERE / "armed", HERE, HERE.parent / "e2e", os.environ.get("PYTHONPATH", ""))))
    return {dies.VARIABLE: json.dumps(orders), "PYTHONPATH": path}


def lines(folder: Path, role: str, publishing: int, others: int) -> list[str]:
    """Of the lines that were listed so many that publish, and so many of the others, evenly over all of them."""
    found = list(dict.fromkeys((folder / role / "lines").read_text().splitlines()))
    published = [line for line in found if publishes(line)]
    rest = [line for line in found if not publishes(line)]
    return [part[i * len(part) // many] for part, many in ((published, publishing), (rest, others)) for i in range(many)]


def publishes(line: str) -> bool:
    return line.partition(" ")[2].startswith(PUBLISHING)


def died(folder: Path, role: str) -> list[tuple[float, str]]:
    """When those of a role died, by the wall clock, and where."""
    return sorted((float(path.read_text()), path.name) for path in (folder / role / "deaths").iterdir())


def restarted(start: Start, out: Path, folder: Path, points: Sequence[str]) -> Deaths:
    """Start a run again and again until it ends; each time the driver dies at another of `points`.

    Raises `AssertionError` if what a death leaves is not the committed step that was there before it, or a later one; if
    the next start goes on from anything else; or if the ledger does not add up.
    """
    environment, before, left = armed(folder, driver=points), 0, list[int]()
    for number in count(1):
        process = start(environment)
        text = ended(process, folder)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, f"exit {process.returncode}: {text}"
        assert len(died(folder, "driver")) == number, f"killed by somebody else: {text}"
        at = died(folder, "driver")[-1][1]
        left.append(committed(out))
        assert left[-1] >= before, f"died at {at}: v{before} was committed, and v{left[-1]} is what is left"
        assert not (wrong := ledger.audit(out).wrong), f"died at {at}: {wrong}"
        assert len(rows(out, "metrics")) - left[-1] <= 1, f"died at {at}, {len(rows(out, 'metrics'))} steps were taken"
        before = left[-1]
    starts = [row for row in rows(out, "events") if row["event"] == "start"]
    assert [row["step"] for row in starts] == [0, *left], f"{left} was committed, and gone on from: {starts}"
    return _deaths(folder, "driver", out, [row["at"] for row in starts], "at most 1 step a death")


def replaced(start: Start, out: Path, folder: Path, role: str, points: Sequence[str]) -> Deaths:
    """One run, in which one process of a role after the other dies at another of `points`, and is replaced.

    Raises `AssertionError` if one was not, or the run went on from anything but a committed step.
    """
    process = start(armed(folder, **{role: points}))
    text = ended(process, folder)
    assert process.returncode == 0, f"exit {process.returncode}: {text}"
    name = {"learner": "learners", "engine": "engine"}[role]
    told = [row for row in rows(out, "events") if row["event"] in ("start", name)]
    lost = [i for i, row in enumerate(told) if row.get("what") == "lost"]
    assert len(lost) == len(died(folder, role)), told
    assert all("SIGKILL" in told[i]["why"] for i in lost), told
    again = 0
    if role == "learner":
        for i in lost:
            at, gone_on = told[i], told[i + 1]
            assert (gone_on["event"], gone_on["step"]) == ("start", at["committed"]), (at, gone_on)
            assert at["step"] - 1 <= at["committed"] <= at["step"], f"more than the step that it died in was lost: {at}"
            again += at["step"] - at["committed"]
    back = [row["at"] for row in told if row.get("what") == "back"]
    return _deaths(folder, role, out, back, f"{again} steps in {len(lost)} deaths" if again else "none")


def _deaths(folder: Path, role: str, out: Path, back: list[float], lost: str) -> Deaths:
    assert not (wrong := ledger.audit(out).wrong), wrong
    assert not (bad := [row for row in rows(out, "events") if row["event"] == "damaged"]), bad
    assert [row["step"] for row in rows(out, "metrics")] == [*range(1, committed(out) + 1)]
    deaths = died(folder, role)
    recovery = []
    for (at, _), (following, _) in zip(deaths, [*deaths[1:], (float("inf"), "")], strict=True):
        recovery += [useful - at for useful in back if at < useful < following][:1]
    return Deaths([line for _, line in deaths], recovery, lost)


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


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


def ended(process: subprocess.Popen[str], folder: Path, seconds: float = 600) -> str:
    """What a run that was `armed` has printed when it has ended, and nothing is left of it."""
    try:
        return str(process.communicate(timeout=seconds)[0])
    finally:
        bury(process, folder)


def bury(process: subprocess.Popen[str], folder: Path) -> None:
    """Kill a run and whatever it left behind, known by the order to die that it was started with: processes that lost
    their parent are nobody's children."""
    process.kill()
    process.wait()
    left = []
    for one in psutil.process_iter():
        try:
            if f'"{folder}/' in one.environ().get(dies.VARIABLE, ""):
                one.kill()
                left.append(one)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    assert not psutil.wait_procs(left, timeout=20)[1], "SIGKILL did not end it"


if __name__ == "__main__":
    print(json.dumps(every_line(Path(sys.argv[1]), int(sys.argv[2]))))
