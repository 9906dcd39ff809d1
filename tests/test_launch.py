"""The scripts of launch/ run for real on one machine (only Slurm is played); the images are linted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

import psutil
import pytest

ROOT = Path(__file__).parents[1]
HEAD, WORKER, SBATCH = (ROOT / "launch" / name for name in ("ray/head.sh", "ray/worker.sh", "slurm/train.sbatch"))
SCRIPTS = sorted([*ROOT.glob("launch/**/*.sh"), *ROOT.glob("launch/**/*.sbatch")])
IMAGES = sorted(ROOT.glob("docker/*.Dockerfile"))
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# In place of rlreason: speaks to Ray, looks for the token where it must not be, and ends as it is told.
RUN = """
import json, os, pathlib, signal, subprocess, sys, time
import psutil, ray

asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
ray.init(log_to_driver=False, configure_logging=False)

@ray.remote(num_cpus=0)
class Stubborn:
    def ready(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return os.getpid()
    def hang(self): __import__("re").match("(a+)+$", "a" * 60 + "b")  # in C, holding the GIL

actor = Stubborn.remote()
pids = [ray.get(actor.ready.remote()), subprocess.Popen(["sleep", "600"]).pid]  # os._exit leaves the second behind
actor.hang.remote()
token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
secret, told = token.read_text().strip(), []
for process in psutil.process_iter():
    try:
        words = " ".join([*process.cmdline(), *process.environ().values()])
        if os.environ["RAY_TMPDIR"] in words or process.parent() and process.parent().pid in pids:
            pids.append(process.pid)
        if secret in words:
            told.append(process.pid)
    except psutil.Error:
        pass
stranger = subprocess.run(["ray", "health-check", "--address", os.environ["RAY_ADDRESS"]], timeout=30,
                          capture_output=True, env=os.environ | {"RAY_AUTH_MODE": "disabled"}) if STRANGER else None
seen = dict(arguments=sys.argv[1:], nodes=sum(n["Alive"] for n in ray.nodes()), mode=oct(token.stat().st_mode & 0o777),
            secret=secret, told=told, pids=pids, folder=os.environ["RAY_TMPDIR"],
            refused=stranger and "InvalidAuthToken" in stranger.stderr.decode())
report = pathlib.Path(os.environ["SEEN"])
report.with_suffix(".part").write_text(json.dumps(seen))
report.with_suffix(".part").rename(report)
while WAITS and not asked:
    time.sleep(0.05)
os._exit(CODE)
"""

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "$1" >>"$ASKED"; shift; done
export PORT=$((PORT + 1200))  # a second node on the same machine needs other ports
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$ASKED"
[[ $1 != show ]] || printf '%s\\n' $HOSTS
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def stand_in(folder: Path, code: int, waits: bool = False, stranger: bool = False) -> Path:
    text = RUN.replace("CODE", str(code)).replace("WAITS", str(waits)).replace("STRANGER", str(stranger))
    return program(folder / "rlreason", f"#!{sys.executable}\n{text}")


def tool(name: str) -> str:
    found = shutil.which(name, path=PATH)
    assert found, f"{name} is missing: pip install -e .[dev]"
    return found


def free_port() -> int:
    """The first of a range as head.sh and a second node use it."""
    for port in random.sample(range(12000, 30000, 100), 50):
        with closing(socket.socket()) as s:
            if all(s.connect_ex(("127.0.0.1", port + i)) for i in (0, 1, 7, 1201)):
                return port
    raise AssertionError("no free ports")


def environment(folder: Path, **more: object) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    ours = {"PATH": PATH, "CPUS": 1, "WAIT": 90, "PORT": free_port(), "LOGS": folder / "logs", "SEEN": folder / "seen"}
    return kept | {k: str(v) for k, v in (ours | more).items()}


def run(*command: object, **env: str) -> tuple[int, str]:
    with TemporaryFile("w+") as out:  # a pipe would wait for whoever is left behind with it
        with ended(subprocess.Popen([str(c) for c in command], env=env, stdout=out, stderr=out)) as process:
            code = process.wait(150)
        out.seek(0)
        return code, out.read()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """However the test ends, the script is asked to clean up."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def alive(pids: list[int]) -> list[str]:
    """Those that still run, a moment after they were told to end; one that nobody has reaped does not."""
    time.sleep(0.3)
    left = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{pid} {process.name()}")
        except psutil.NoSuchProcess:
            pass
    return left


def shared_memory() -> set[str]:
    """What lies in /dev/shm and is nobody's: a segment in use belongs to somebody else's living process."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            used |= {line.split()[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return {str(p) for p in Path("/dev/shm").iterdir()} - used


@pytest.fixture
def nothing_left() -> Iterator[list[int]]:
    """Of the processes that a test names, and of shared memory."""
    before = shared_memory()
    pids: list[int] = []
    yield pids
    assert pids
    assert alive(pids) == []
    assert shared_memory() <= before


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_is_bash_and_passes_shellcheck(script: Path) -> None:
    assert run("bash", "-n", script, PATH=PATH) == (0, "")
    assert run(tool("shellcheck"), "--external-sources", script, PATH=PATH) == (0, "")


@pytest.mark.parametrize("image", IMAGES, ids=lambda p: p.name)
def test_an_image_passes_hadolint(image: Path) -> None:
    assert run(tool("hadolint"), image, PATH=PATH) == (0, "")


@pytest.mark.parametrize("script", [HEAD, WORKER], ids=lambda p: p.name)
def test_help_is_given_and_a_call_without_arguments_is_a_mistake(script: Path) -> None:
    code, out = run(script, "--help", PATH=PATH)
    assert (code, out.splitlines()[0].startswith("usage:")) == (0, True)
    assert run(script, PATH=PATH)[0] == 2


def test_the_head_hands_on_the_exit_code_guards_its_token_and_leaves_nothing(tmp_path: Path, nothing_left: list[int]) -> None:
    env = environment(tmp_path, RLREASON=stand_in(tmp_path, code=7, stranger=True))
    code, out = run(HEAD, "recipe.yaml", "loop.steps=3", **env)
    assert code == 7, out
    seen = json.loads((tmp_path / "seen").read_text())
    nothing_left += seen["pids"]
    assert len(seen["pids"]) > 5, "Ray's processes were not found"
    assert seen["arguments"] == ["train", "recipe.yaml", "loop.steps=3"]
    assert seen["mode"] == "0o600"
    assert seen["told"] == [], "the token is on a command line or in an environment"
    assert seen["refused"], "Ray answered somebody without a token"
    assert not Path(seen["folder"]).exists()
    logs = [*(tmp_path / "logs").glob("ray-logs-*/*")]
    assert logs, "a run that failed keeps Ray's logs"
    assert seen["secret"] not in out
    assert not any(seen["secret"].encode() in p.read_bytes() for p in logs if p.is_file())


def test_the_head_gives_up_when_too_few_nodes_come(tmp_path: Path) -> None:
    env = environment(tmp_path, NODES=2, WAIT=9, RLREASON="true")
    began = time.monotonic()
    code, out = run(HEAD, "recipe.yaml", **env)
    assert code == 3, out
    assert "1 of 2 nodes have joined" in out or "Ray did not start" in out  # the latter on a busy machine
    assert time.monotonic() - began < 9 + 20  # the deadline, and the end of a Ray on a busy machine


def test_a_worker_gives_up_when_no_head_answers(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("no matter")
    env = environment(tmp_path, WAIT=1, RAY_AUTH_TOKEN_PATH=token)
    code, out = run(WORKER, f"127.0.0.1:{free_port()}", **env)
    assert code == 3, out
    assert "no head answers" in out


def test_a_head_whose_port_is_taken_says_so(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        code, out = run(HEAD, "recipe.yaml", **environment(tmp_path, PORT=taken.getsockname()[1]))
    assert (code, "choose another" in out) == (3, True), out


def slurm(folder: Path, hosts: str, **more: object) -> dict[str, str]:
    """A job, as its script finds it; its nodes are names of this machine."""
    program(folder / "bin" / "srun", SRUN)
    program(folder / "bin" / "scontrol", SCONTROL)
    (folder / "launch").symlink_to(ROOT / "launch")
    job = {"SLURM_SUBMIT_DIR": folder, "SLURM_JOB_ID": 17, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_ON_NODE": 1}
    env = environment(folder, **job, HOSTS=hosts, SLURMD_NODENAME="127.0.0.1", ASKED=folder / "asked", **more)
    return env | {"RAY_PORT": env.pop("PORT"), "PATH": f"{folder / 'bin'}{os.pathsep}{PATH}"}


def test_slurm_warns_the_run_commits_and_the_job_is_requeued(tmp_path: Path, nothing_left: list[int]) -> None:
    env = slurm(tmp_path, "127.0.0.1 localhost", RLREASON=stand_in(tmp_path, code=75, waits=True))
    out = tmp_path / "out"
    with (
        out.open("w") as file,
        ended(subprocess.Popen(["bash", SBATCH, "recipe.yaml"], env=env, stdout=file, stderr=file)) as job,
    ):
        deadline = time.monotonic() + 90
        while not (tmp_path / "seen").exists():
            assert job.poll() is None, out.read_text()
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.1)
        seen = json.loads((tmp_path / "seen").read_text())
        nothing_left += seen["pids"]
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == 75, out.read_text()
    assert seen["nodes"] == 2
    asked = (tmp_path / "asked").read_text().splitlines()
    assert {"--cpus-per-task=1", "--exclude=127.0.0.1", "--nodes=1"} <= {*asked}
    assert asked[-1] == "scontrol requeue 17"
    assert [*(tmp_path / "runs").glob(".slurm*")] == [], "the token is still there"


def test_slurm_hands_on_a_failure_and_requeues_nothing(tmp_path: Path) -> None:
    failing = program(tmp_path / "rlreason", "#!/bin/sh\nexit 4\n")
    code, out = run("bash", SBATCH, "recipe.yaml", **slurm(tmp_path, "127.0.0.1", RLREASON=failing))
    assert code == 4, out
    assert "requeue" not in (tmp_path / "asked").read_text()
