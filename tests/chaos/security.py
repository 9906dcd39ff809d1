"""Cases of the catalogue about who gets in and what gets out: files of others, Ray, nodes, ports, W&B, secrets."""

from __future__ import annotations

import functools
import json
import os
import pickle
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from case import Case, Seen
from real import ROOT, Run, make_model, rlreason

from rlreason import checkpoint, nodes
from rlreason.errors import Wounded
from rlreason.meeting import meet

SENTINEL = "sk-SENTINEL-that-nobody-may-read"

# A Ray on this machine's outward address that asks for a token, such as launch/ray/ starts.
HEAD = """
import sys, ray
ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@functools.cache
def model() -> Path:
    return make_model("qwen2-tied", Path(tempfile.mkdtemp(prefix="rlreason-security-")))


def train(folder: Path, *more: str, path: Path | None = None, timeout: float = 240, **environment: str) -> Run:
    """The debug recipe for two steps, on tasks that need nobody."""
    tasks = folder / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": f"say {i}", "answer": str(i)}) + "\n" for i in range(9)))
    return rlreason(
        "train", "recipes/debug.yaml", f"model={path or model()}", f"tasks.path={tasks}", f"out={folder / 'run'}",
        "loop.steps=2", "eval.tasks=0", *more, out=folder / "run", timeout=timeout, **environment,
    )  # fmt: skip


def ended(run: Run, code: int, *words: str) -> str:
    """The message of a run that ended as it should, in one line."""
    assert run.code == code, f"exit {run.code} after {run.seconds:.0f} s: {run.text[-1500:]}"
    assert "Traceback" not in run.text, run.text[-1500:]
    lines = [line for line in run.text.splitlines() if line.startswith("rlreason:")]
    for word in words:
        assert word in run.text, f"{word!r} is not in: {run.text[-1500:]}"
    assert len(run.text.splitlines()) <= 40, "more than a screen"
    return f"exit {code} in {run.seconds:.1f} s: `{lines[-1].removeprefix('rlreason: ')[:100] if lines else '…'}`"


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def pickles(folder: Path) -> Seen:
    mark = folder / "ran"
    bad = folder / "model"
    bad.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bad / name).write_bytes((model() / name).read_bytes())
    (bad / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    told = ended(train(folder, path=bad), 2, "pickles (pytorch_model.bin)", "convert them to safetensors")

    commits = folder / "checkpoints"
    for version in (1, 2):
        (commits / f"v{version}" / "deepspeed").mkdir(parents=True)
        (commits / f"v{version}" / "deepspeed" / "shard.pt").write_bytes(pickle.dumps({"step": version}))
        checkpoint.commit(commits / f"v{version}", {"version": version, "cursor": version})
    (commits / "v2" / "deepspeed" / "shard.pt").write_bytes(pickle.dumps(Bomb(mark)))
    found = checkpoint.newest(commits)
    assert found is not None
    assert found[0].name == "v1", found
    assert not mark.exists(), "the pickle was read"
    return Seen(f"{told}; a shard that is not what was committed is not read, and v1 before it is found; nothing ran")


@contextmanager
def head(folder: Path) -> Iterator[tuple[str, Path]]:
    """Somebody's Ray with a token: its address, and the token's file."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    place = tempfile.mkdtemp(prefix="rl.", dir="/tmp")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD, place], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), token
        finally:
            process.communicate(timeout=60)  # its input ends, and so does it
            shutil.rmtree(place, ignore_errors=True)


def tokens(folder: Path) -> Seen:
    told = []
    with head(folder) as (address, token):
        assert address, (folder / "head.log").read_text()[-1000:]
        wrong = folder / "wrong"
        wrong.write_text(secrets.token_hex(32))
        for name, own in (
            ("none", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "gone")}),
            ("another", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)}),
            ("no mode", {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": ""}),
        ):
            run = train(folder, "--fresh", RAY_ADDRESS=address, **own)
            ended(run, 3, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "does not let us in")
            assert token.read_text() not in run.text
            told.append(f"{name}: exit 3 in {run.seconds:.0f} s")
        right = train(folder, "--fresh", RAY_ADDRESS=address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
        assert right.code == 0, right.text[-1500:]
    dead = train(folder, "--fresh", RAY_ADDRESS=address)
    ended(dead, 3, "cannot be joined")
    return Seen(
        f"{'; '.join(told)}, each names RAY_AUTH_MODE; its own: exit 0; a head that is gone: exit 3 in {dead.seconds:.0f} s"
    )


def versions(folder: Path) -> Seen:
    (folder / "canary").write_text("x")
    here = nodes.report(str(folder / "canary"))
    assert {"python", "ray", "torch", "transformers"} <= here.keys(), here
    assert nodes.unlike({"a": here, "b": here}, str(folder), "x") == ""
    told = nodes.unlike({"a": here, "b": here, "c": here | {"ray": "2.55.0"}}, str(folder), "x")
    assert "ray is not the same on every node" in told
    assert "2.55.0 on c" in told
    return Seen(f"`{told.splitlines()[0]}`")


def apart(folder: Path) -> Seen:
    """The second node's file system is a process with another one in the folder's place, where the kernel lets us."""
    (folder / "canary").write_text("x")
    report = f"from rlreason import nodes; import json; print(json.dumps(nodes.report({str(folder / 'canary')!r})))"
    inside = f'mount -t tmpfs none {folder} && exec {sys.executable} -c "$REPORT"'
    began = time.monotonic()
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", inside], capture_output=True, text=True, timeout=60,
        cwd=ROOT, env=os.environ | {"REPORT": report, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    there = json.loads(done.stdout) if done.returncode == 0 else nodes.report(str(folder / "elsewhere" / "canary"))
    told = nodes.unlike({"a": nodes.report(str(folder / "canary")), "b": there}, str(folder), "x")
    assert "is not the same folder on every node" in told, told
    assert "is not seen on b" in told, told
    how = "a mount of its own" if done.returncode == 0 else "another path, for want of mounts"
    return Seen(f"told in {time.monotonic() - began:.1f} s, the second node being a process with {how}")


def ports(folder: Path) -> Seen:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        try:
            meet("gloo", "127.0.0.1", port, 0, 1)
        except Wounded as error:
            told = str(error)
        else:
            raise AssertionError("two have one port")
    with socket.create_server(("", 0)) as server:
        taken = server.getsockname()[1]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", ROOT / "launch/ray/head.sh", "recipe.yaml"], capture_output=True, text=True, timeout=60,
            env=os.environ | {"PORT": str(taken), "LOGS": str(folder), "PATH": path},
        )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "choose another with PORT" in done.stderr
    return Seen(f"learners: `{told}`, and the next start takes another; launch/ray/head.sh: exit 3, choose another with PORT")


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    held = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:  # it is closed
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def wandb(folder: Path) -> Seen:
    key = "0" * 40
    told = []
    with silent() as slow:
        for name, environment in (
            ("down", {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": key}),
            ("without a key", {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "", "HOME": str(folder)}),
            ("never answers", {"WANDB_BASE_URL": slow, "WANDB_API_KEY": key}),
        ):
            run = train(folder, "--fresh", "log.wandb=test", WANDB_MODE="online", **environment)
            assert run.code == 0, f"{name}: {run.text[-1500:]}"
            assert len(run.rows) == 2, f"{name}: {len(run.rows)} rows"
            assert run.seconds < 150, f"{name}: the run took {run.seconds:.0f} s"
            steps = [row["time/step"] for row in run.rows]
            assert max(steps) < 20, f"{name}: a step took {max(steps):.0f} s"
            events = [json.loads(line) for line in (run.out / "events.jsonl").read_text().splitlines()]
            assert any(e["event"] == "wandb" for e in events), f"{name}: nobody told"
            told.append(f"{name}: {run.seconds:.0f} s in all, steps of {max(steps):.1f} s at most")
    return Seen(f"{'; '.join(told)}; metrics.jsonl whole, events.jsonl tells")


def hidden(folder: Path) -> Seen:
    """The whole search is tests/e2e/test_walls.py, of a run with secrets in every place; here by that test itself."""
    search = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/e2e/test_walls.py"]
    done = subprocess.run([*search, "--basetemp", folder / "pytest"], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:]
    refused = train(folder, f"rewards.options.judge={{url: 'http://localhost/v1', model: j, key: {SENTINEL}}}")
    told = ended(refused, 2, "say key_file")
    assert SENTINEL not in refused.text
    assert not (folder / "run").exists()
    return Seen(f"in no file, argument or metadata of a run ({done.stdout.strip().splitlines()[-1]}); as a value: {told}")


CASES = [
    Case(62, "a pickle that runs something: as a model's weights, and in place of a committed shard",
         "refused before anything starts, with the way to convert it (exit 2); a shard that is not what was committed is not "
         "read, and the commit before it is used", pickles),
    Case(67, "RAY_ADDRESS with no token, another token, or a head that is gone",
         "exit 3 within half a minute; the message names RAY_AUTH_MODE and the token's path, and never the token",
         tokens, engines=True),
    Case(68, "a node with another version of Ray", "told with nodes and versions before anything is loaded", versions),
    Case(69, "a run's folder that one node sees as another", "told by a canary file in less than 30 s", apart),
    Case(70, "a port that somebody has", "the learners take another; launch/ says which option (exit 3)", ports),
    Case(71, "W&B down, without a key, and one that takes connections and never answers",
         "training unaffected, metrics.jsonl whole, told in events.jsonl", wandb, engines=True),
    Case(72, "secrets in the environment, in key files, and as a value in a recipe",
         "in no log, recipe, run folder, argument or metadata of Ray; a value is refused (exit 2)", hidden, engines=True),
]  # fmt: skip
