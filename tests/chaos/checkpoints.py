"""Checkpoints and storage: what a crash, a full disk or a changed recipe does to work that was committed."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median

import killpoints
import torch
from case import Case, Seen
from real import Run, command, make_model, rlreason
from safetensors.torch import load_file
from world import Running, options

from rlreason import checkpoint, ledger, storage

HERE = Path(__file__).parent
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
DEMONSTRATED = ("algorithm.answers=recorded", "algorithm.loss=nll", "loop.samples=1", "loop.save_every=1")
ANSWERED = 30  # steps of a run in which processes die
RANKS, ZERO = "learner.workers", "learner.deepspeed.zero_optimization.stage"


# ---- the smallest run: demonstrations, so one learner and no engine; a checkpoint after each step ----


@cache
def parts() -> tuple[Path, Path]:
    """A model of 90 000 parameters, and demonstrations for it."""
    folder = Path(tempfile.mkdtemp(prefix="rlreason-chaos-"))
    model = make_model("qwen2-tied", folder / "made")
    rows = [{"prompt": f"say {i % 10}: ", "answer": str(i % 10), "response": f"{i % 10}{i // 10}"} for i in range(80)]
    (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, folder / "demonstrations.jsonl"


def recipe(out: Path, *more: str) -> list[str]:
    model, tasks = parts()
    return ["train", "recipes/debug.yaml", f"model={model}", f"tasks.path={tasks}", f"out={out}", "algorithm.answers=recorded",
            "algorithm.loss=nll", "loop.samples=1", "loop.save_every=1", "eval.tasks=0", *more]  # fmt: skip


def train(out: Path, *more: str) -> Run:
    """To its end; `AssertionError` if it comes to another."""
    run = rlreason(*recipe(out, *more), out=out)
    assert run.code == 0, run.text
    return run


def refused(out: Path, code: int, *more: str, told: str) -> Run:
    run = rlreason(*recipe(out, *more), out=out)
    assert run.code == code, f"exit {run.code}, not {code}: {run.text}"
    assert re.search(told, run.text), f"does not say {told!r}: {run.text}"
    assert "Traceback" not in run.text, run.text
    return run


@cache
def whole(steps: int) -> Path:
    """A run that nothing happens to."""
    out = Path(tempfile.mkdtemp(prefix="rlreason-chaos-")) / "whole"
    train(out, f"loop.steps={steps}")
    return out


def copied(folder: Path, steps: int = 3) -> Path:
    """A copy of it, to do things to."""
    shutil.copytree(whole(steps), folder / "run", symlinks=True)
    return folder / "run"


def weights(out: Path) -> bytes:
    return (out / "weights" / "last" / "model.safetensors").read_bytes()


def events(out: Path, name: str) -> list[dict]:
    rows = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == name]


def goes_on(out: Path, after: int, *more: str, seconds: float = 0.0) -> Run:
    """Two steps more than the run was to have, from the checkpoint of step `after`; and the same bytes come of it as of a
    run that nothing happened to."""
    run = train(out, "loop.steps=5", "--force", *more)
    assert f"going on from {out}/checkpoints/v{after}" in run.text, run.text
    assert weights(out) == weights(whole(5)), "other weights than those of a run that nothing happened to"
    return run


# ---- the cases ----


def no_room(folder: Path) -> Seen:
    """A checkpoint and its model have 1.4 MB, and no disk has room for a billion of them."""
    many = 1_000_000_000
    run = refused(folder / "run", 5, f"loop.steps={many}", f"loop.keep={many}", told="bytes are needed there")
    found = re.search(r"([\d,]+) bytes are needed there \(.*\), and ([\d,]+) are free", run.text)
    assert found, run.text
    needed, free = (int(number.replace(",", "")) for number in found.groups())
    assert needed > many * 12 * 90_000 > free
    assert "starting" not in run.text
    return Seen(f"exit 5 in {run.seconds:.1f} s, before anything starts: {found[1]} bytes needed, {found[2]} free")


def lines_killed(folder: Path) -> Seen:
    with tempfile.TemporaryDirectory(dir=MEMORY) as memory:  # a disk would be waited for, and that is all that it would add
        script = [sys.executable, HERE / "killpoints.py", memory, "1"]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    return Seen(f"{json.loads(done.stdout)['points']} points, at each a committed step was left, and the same files came of it")


def answered(out: Path, *more: str) -> list[str]:
    """One learner, one engine, and a checkpoint after each step."""
    return ["train", "recipes/debug.yaml", *options(out), "rollout.workers=1", "loop.save_every=1", f"loop.steps={ANSWERED}",
            "recovery.retries=1000", *more]  # fmt: skip


@cache
def known() -> Path:
    """Such a run, that nothing happens to; and, beside it, every line that it comes to."""
    folder = Path(tempfile.mkdtemp(prefix="rlreason-chaos-"))
    process = command(*answered(folder / "run"), **killpoints.armed(folder, **dict.fromkeys(killpoints.ROLES)))
    text = killpoints.ended(process, folder)
    assert process.returncode == 0, text
    return folder


def killed(role: str, publishing: int, others: int) -> Callable[[Path], Seen]:
    """Kill those of a role at so many distinct lines of a real run, but for those that it does not come to again."""

    def check(folder: Path) -> Seen:
        def start(environment: dict[str, str]) -> subprocess.Popen[str]:
            return command(*answered(out), **environment)

        out, points = folder / "run", killpoints.lines(known(), role, publishing, others)
        if role == "driver":
            deaths = killpoints.restarted(start, out, folder, points)
        else:
            deaths = killpoints.replaced(start, out, folder, role, points)
        assert len(deaths.lines) >= 0.9 * len(points), f"{sorted({*points} - {*deaths.lines})} were never come to"
        assert weights(out) == weights(known() / "run"), "other weights than those of a run that nothing happened to"
        return Seen(f"{deaths}; each time on from a committed step; {ledger.audit(out)}; weights equal to the bit",
                    median(deaths.recovery), deaths.lost)  # fmt: skip

    return check


def damaged(folder: Path) -> Seen:
    """The newest shard loses its end; that of the one before has one bit turned."""
    out = copied(folder, 4)
    shards = {version: next((out / "checkpoints" / f"v{version}").rglob("*.pt")) for version in (3, 4)}
    os.truncate(shards[4], shards[4].stat().st_size // 2)
    content = bytearray(shards[3].read_bytes())
    content[len(content) // 2] ^= 1
    shards[3].write_bytes(content)
    run = rlreason(*recipe(out, "loop.steps=5", "--force"), out=out)
    assert run.code == 5, f"exit {run.code} though no checkpoint holds: {run.text}"
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["v3", "v4"]
    content[len(content) // 2] ^= 1
    shards[3].write_bytes(content)
    run = goes_on(out, 3)
    assert len(events(out, "damaged")) == 1
    assert (out / "checkpoints" / "damaged-v4").is_dir()
    return Seen(
        "both damaged: exit 5, nothing deleted. One: told, moved aside, went on from v3 to the same bytes", lost="1 step"
    )


def no_manifest(folder: Path) -> Seen:
    out = copied(folder)
    (out / "checkpoints" / "v3" / checkpoint.MANIFEST).unlink()
    goes_on(out, 2)
    return Seen("v3 without its manifest is none: went on from v2, to the same bytes", lost="1 step")


def pointers(folder: Path) -> Seen:
    """What leads to the newest weights is empty, and what leads to the best leads nowhere."""
    out = copied(folder)
    (out / "weights" / "last").unlink()
    (out / "weights" / "last").write_bytes(b"\xff\x00 garbage")
    checkpoint.point(out / "weights" / "best", "v77")
    (out / "checkpoints" / "latest").write_text("")
    goes_on(out, 3)
    return Seen("no pointer is read: went on from v3, and weights/last leads to v5 again", lost="0 steps")


def no_large_file(folder: Path) -> Seen:
    """From the second checkpoint on the learner may write no file of more than 100 kB (RLIMIT_FSIZE), and a checkpoint's has
    a megabyte: a full disk or quota as anybody may have it."""
    run = Running(folder / "run", *DEMONSTRATED, "loop.steps=60")
    run.until(lambda: len(checkpoint.committed(run.out / "checkpoints")) >= 2)
    learner = run.pid("learner-0")
    hard = resource.prlimit(learner, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(learner, resource.RLIMIT_FSIZE, (100_000, hard))
    code, text = run.end()
    assert code == 5, f"exit {code}: {text[-2000:]}"
    assert "checkpoints/v60" in text, text[-2000:]
    assert "File too large" in text or "No space left" in text, text[-2000:]
    unsaved, steps, left = len(run.events("unsaved")), run.rows()[-1]["step"], checkpoint.committed(run.out / "checkpoints")
    assert steps == 60, f"training ended at step {steps}: {text[-2000:]}"
    assert unsaved >= 60 - int(left[0].name[1:]) - 1, unsaved
    assert not (wrong := [found for one in left if (found := checkpoint.problem(one))]), wrong
    again = Running(folder / "run", *DEMONSTRATED, "loop.steps=60")
    audit = again.whole(60)
    assert again.events("start")[-1]["step"] == int(left[0].name[1:])
    return Seen(f"all 60 steps taken, {unsaved} events, {left[0].name} whole, exit 5 at the end with the path; when it may, "
                f"the same command goes on from there; {audit}", lost=f"{60 - int(left[0].name[1:])} steps")  # fmt: skip


def disk_full(folder: Path) -> Seen:
    """A real disk of 12 MB, filled up by somebody else after the second checkpoint; 400 kB are left, which no checkpoint
    fits into."""
    disk = folder / "disk"
    arguments = recipe(disk / "run", "loop.steps=60", "log.rollouts=1")
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent / "e2e", HERE.parent.parent)))}
    done = on_disk(disk, "12m", [sys.executable, HERE / "checkpoints.py", disk, *arguments], **environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["code"] == 5, f"exit {seen['code']}: {seen['text']}"
    assert seen["steps"] == 60, f"training ended at step {seen['steps']}: {seen['text']}"
    assert seen["unsaved"] >= 1, "no event says that nothing was saved"
    assert seen["problems"] == [], seen
    assert "bytes are needed for a checkpoint" in seen["text"] or "No space left" in seen["text"], seen["text"]
    return Seen(f"full at step {seen['full']}: all 60 steps taken, {seen['unsaved']} events, v{seen['left'][0]} whole, exit 5 "
                "at the end, with the path", lost=f"{60 - seen['left'][0]} steps, if no room is made")  # fmt: skip


def fill(disk: Path, arguments: list[str]) -> None:
    """In a process that has the disk: run, fill it up when two checkpoints are there, and tell what came of it."""
    out = disk / "run"
    process = command(*arguments)
    deadline = time.monotonic() + 120
    while len(checkpoint.committed(out / "checkpoints")) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    full = checkpoint.committed(out / "checkpoints")[0].name
    with (disk / "of somebody else").open("wb") as file:
        while (free := shutil.disk_usage(disk).free) > 400_000:
            file.write(bytes(min(free - 400_000, 1 << 20)))
            file.flush()
    text = process.communicate(timeout=200)[0]
    left = checkpoint.committed(out / "checkpoints")
    print(json.dumps({
        "code": process.returncode, "text": text[-3000:], "full": int(full[1:]), "left": [int(f.name[1:]) for f in left],
        "problems": [wrong for f in left if (wrong := checkpoint.problem(f))], "unsaved": len(events(out, "unsaved")),
        "steps": json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"],
    }))  # fmt: skip


def mountable() -> bool:
    """May this user mount a file system of their own? Not in most containers."""
    asked = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and not subprocess.run(asked, capture_output=True, check=False).returncode


def on_disk(disk: Path, size: str, arguments: list, **environment: str) -> subprocess.CompletedProcess:
    """Run a command that has, at `disk`, a real file system of so many bytes. It is seen by that command alone."""
    disk.mkdir(parents=True)
    script = 'mount -t tmpfs -o "size=$0" tmpfs "$1" && shift && exec "$@"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, size, disk, *arguments], capture_output=True, text=True, timeout=400,
        check=False, cwd=HERE.parent.parent, env=os.environ | environment,
    )  # fmt: skip


def one_kept(folder: Path) -> Seen:
    """Dead at every line of pruning, with one checkpoint to keep."""
    names = ("prune", "prune_weights", "_removed", "_remove", "committed", "_versions")
    with tempfile.TemporaryDirectory(dir=MEMORY) as memory:
        told = killpoints.every_line(Path(memory), 1, [f"rlreason/checkpoint.py:{name}" for name in names])
    return Seen(f"{told['points']} points of pruning: the new one was committed at each")


def epoch(folder: Path) -> Seen:
    """Eight demonstrations, four a step: an epoch is two steps, and the run dies when it has committed the second."""
    (folder / "eight.jsonl").write_text("".join(parts()[1].read_text().splitlines(keepends=True)[:8]))
    more = (f"tasks.path={folder / 'eight.jsonl'}", "loop.steps=5")
    train(folder / "whole", *more)
    out = folder / "run"
    process = command(*recipe(out, *more), **killpoints.armed(folder, driver=()))
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "v2" / checkpoint.MANIFEST).exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    after = checkpoint.committed(out / "checkpoints")[0].name
    killpoints.bury(process, folder)
    for version in (3, 4, 5):  # it was faster than the signal
        shutil.rmtree(out / "checkpoints" / f"v{version}", ignore_errors=True)
    run = train(out, *more)
    assert f"going on from {out}/checkpoints/v2" in run.text, run.text
    asked = [row["task"] for n in range(1, 6) for row in map(json.loads, (out / "rollouts" / f"step-{n:06}.jsonl").open())]
    assert weights(out) == weights(folder / "whole")
    assert len(set(asked)) == len(asked) == 20
    return Seen(f"killed at {after}, went on from v2 into the second epoch, and the third: the same bytes", lost="0 steps")


def changed(folder: Path) -> Seen:
    """The seed, the batch size and the data set, one after the other; and all of it by force."""
    out = copied(folder)
    told = []
    for more, what in ((("seed=7",), "seed was 0, is 7"), (("loop.groups=2",), "loop.groups was 4, is 2")):
        told.append(refused(out, 2, *more, "loop.steps=3", told=what).seconds)
    other = folder / "other.jsonl"
    other.write_text("".join(parts()[1].read_text().splitlines(keepends=True)[:40]))
    refused(out, 2, "loop.steps=3", f"tasks.path={other}", told="other.jsonl is not what it was")
    assert weights(out) == weights(whole(3))
    run = train(out, "seed=7", "loop.groups=2", f"tasks.path={other}", "loop.steps=5", "--force")
    assert "going on from" in run.text, run.text
    (event,) = events(out, "forced")
    assert {line.split()[0] for line in event["changes"]} >= {"seed", "loop.groups", "loop.steps", "tasks.path"}, event
    made = json.loads((out / "manifest.json").read_text())
    assert made["recipe"]["seed"] == 7
    return Seen(f"exit 2 in {max(told):.1f} s with each difference; --force went on from v3, event with "
                f"{len(event['changes'])} differences, new recipe in the manifest")  # fmt: skip


def other_ranks(folder: Path) -> Seen:
    """One learner's checkpoint under ZeRO 0, taken up by two; and not under ZeRO 2."""
    out = copied(folder)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "checkpoints" in p.parts}
    refused(
        out, 2, "loop.steps=5", "--force", f"{ZERO}=2", told="written by 1 learners under ZeRO 0, and 1 under ZeRO 2 cannot"
    )
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "checkpoints" in p.parts}
    run = train(out, "loop.steps=5", "--force", f"{RANKS}=2")
    assert f"going on from {out}/checkpoints/v3" in run.text, run.text
    assert f"{RANKS} was 1, is 2" in events(out, "rescaled")[0]["changes"]
    mine, theirs = (load_file(o / "weights" / "last" / "model.safetensors") for o in (out, whole(5)))
    worst = max((mine[name] - theirs[name]).abs().max().item() for name in theirs)
    assert worst < 1e-6, f"two learners made weights that differ by {worst}"
    assert not torch.equal(*(next(iter(w.values())) for w in (theirs, load_file(out / "weights" / "v4" / "model.safetensors"))))
    return Seen(
        f"ZeRO 0: 1 learner -> 2, weights within {worst:.0e} of one learner's. Another ZeRO stage: exit 2, nothing touched"
    )


def all_gone(folder: Path) -> Seen:
    """The checkpoints of a run are not where they were; or the run is not."""
    out = copied(folder)
    (out / "checkpoints").rename(folder / "elsewhere")
    refused(out, 5, "loop.steps=5", "--force", told="holds no checkpoint that is whole, so there is nothing to go on from")
    assert weights(out) == weights(whole(3))
    wrong = refused(folder / "typo", 2, "--force", told="holds no work to go on with")
    (folder / "elsewhere").rename(out / "checkpoints")
    goes_on(out, 3)
    return Seen(
        f"checkpoints gone: exit 5; --force with a wrong out: exit 2 in {wrong.seconds:.1f} s; brought back, it went on"
    )


def two_at_once(folder: Path) -> Seen:
    out = folder / "run"
    first = command(*recipe(out, "loop.steps=3"))
    try:
        while not (out / ".lock").exists() or not (out / ".lock").read_text():
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.01)
        second = refused(out, 5, "loop.steps=3", told=f"another process is running in {out} \\(process {first.pid} on ")
        text = first.communicate(timeout=200)[0]
    finally:
        first.kill()
    assert first.returncode == 0, text
    assert weights(out) == weights(whole(3))
    return Seen(f"the second: exit 5 in {second.seconds:.1f} s, with the first's process and host; the first was not disturbed")


def stale_handle(folder: Path) -> Seen:
    """A file system that refuses a rename; and a clock that is wrong, which names and numbers of checkpoints do not know."""
    told = {}
    for answer in ("stale once", "lost reply", "116"):
        (folder / answer).mkdir()
        script = [sys.executable, HERE / "refuses.py", folder / answer, "os.rename", answer]
        told[answer] = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told["stale once"] == ["2 new ['a.json']"]
    assert told["lost reply"] == ["1 new ['a.json']"]
    assert told["116"][1] == f"{1 + len(storage.WAITS)} old ['a.json']"
    assert "Stale file handle: the network file system lost the file" in told["116"][0]
    for version in (1, 2):
        made = folder / "checkpoints" / f"v{version}"
        checkpoint.begin(made)
        checkpoint.commit(made, {"version": version})
        os.utime(made, (0, 4e9 - 3e9 * version))
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    assert found.state == {"version": 2}
    return Seen(f"tried again {len(storage.WAITS)} times in {sum(storage.WAITS):g} s, verified by inode; then told, with the "
                "old content in place; the newest is known by its number, not by a clock")  # fmt: skip


CASES = [
    Case(14, "disk full at the start", "exit 5 with bytes needed and free, before anything starts", no_room),
    Case(49, "SIGKILL at every line of commit, point and prune", "a committed step is left, whole, and the same comes of it",
         lines_killed, engines=True),
    Case(49, "SIGKILL of the driver at lines of publish, save and commit", "the same command resumes from a committed step, to "
         "the same bits", killed("driver", 5, 10), engines=True),
    Case(49, "SIGKILL of one learner after the other at lines of publish and save", "each is replaced within the run, from a "
         "committed step, to the same bits", killed("learner", 8, 16), engines=True),
    Case(49, "SIGKILL of one engine after the other at lines of loading weights", "each is replaced within the run, and given "
         "the weights anew; the same bits", killed("engine", 0, 10), engines=True),
    Case(50, "shard truncated, or one bit turned", "told with the file, moved aside, on from the one before; none left: exit 5",
         damaged, engines=True),
    Case(51, "manifest missing", "not a checkpoint", no_manifest, engines=True),
    Case(52, "pointer file empty or garbage", "ignored, and made anew", pointers, engines=True),
    Case(53, "no large file may be written from some save on", "training goes on, old checkpoints untouched, an event each, "
         "exit 5 at the end", no_large_file, engines=True),
    *([Case(53, "disk full during a save", "the same", disk_full, engines=True)] if mountable() else []),
    Case(54, "one checkpoint to keep", "the new one is committed before the old one is deleted", one_kept),
    Case(55, "resume at the end of an epoch", "the next epoch runs, to the same bytes", epoch, engines=True),
    Case(56, "resume with another seed, batch or data set", "exit 2 with the difference; --force goes on, with an event",
         changed, engines=True),
    Case(57, "resume with other ranks or ZeRO stage", "ZeRO 0: any number of ranks; else refused before anything is written",
         other_ranks, engines=True),
    Case(60, "the checkpoints, or the run, are not there", "exit 5 or 2, never from scratch", all_gone, engines=True),
    Case(61, "two processes on one run's folder", "the second: exit 5, with who holds it", two_at_once, engines=True),
    Case(63, "stale handle on rename, clock that jumps", "tried again, verified; no clock is asked", stale_handle),
]  # fmt: skip


if __name__ == "__main__":
    fill(Path(sys.argv[1]), sys.argv[2:])
