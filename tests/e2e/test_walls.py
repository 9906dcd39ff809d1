"""A run of the real parts, looked at from outside: who listens, who is let in, and where secrets can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from real import command

pytestmark = pytest.mark.e2e

SECRETS = {
    "WANDB_API_KEY": "c0ffee11" * 5,
    "HF_TOKEN": "hf_SENTINELsentinelSENTINELsentinel42",
    "OPENAI_API_KEY": "sk-SENTINEL-of-the-environment",
}
JUDGES = "sk-SENTINEL-of-the-judges-file"

# What somebody with the cluster's token can read in the GCS: the key-value store, jobs, nodes and actors with all they hold.
METADATA = """
import sys
from ray._raylet import GcsClient

gcs = GcsClient(address=sys.argv[1])
for namespace in (None, b"fun", b"job", b"cluster", b"session", b"tracing", b"usage_stats", b"dashboard", b"metrics"):
    for key in gcs.internal_kv_keys(b"", namespace):
        print(key, gcs.internal_kv_get(key, namespace))
print(gcs.get_all_job_info(), gcs.get_all_actor_info(), gcs.get_all_node_info())
"""


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that answers nobody before it is told to."""

    looked = threading.Event()
    keys: ClassVar[set[str | None]] = set()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Judge.keys.add(self.headers["Authorization"])
        Judge.looked.wait(120)
        reply = json.dumps({"choices": [{"message": {"content": "Score: 5"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@dataclass
class Seen:
    """A run that has ended, and what was seen of it while it was going on."""

    out: Path
    code: int = 0
    text: str = ""
    listening: dict[str, set[str]] = field(default_factory=dict)  # address -> names of processes
    arguments: set[str] = field(default_factory=set)
    private: Path = Path()  # the folder of its Ray
    modes: dict[str, int] = field(default_factory=dict)
    session: dict[str, bytes] = field(default_factory=dict)  # what lay in that folder
    token: str = ""
    metadata: str = ""
    stranger: str = ""


@pytest.fixture(scope="module")
def run(models, tmp_path_factory) -> Seen:
    folder = tmp_path_factory.mktemp("security")
    (folder / "key").write_text(f"{JUDGES}\n")
    (folder / "tasks.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}", "answer": str(i)}) + "\n" for i in range(9)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen = Seen(folder / "run")
    process = command(
        "train", "recipes/debug.yaml", f"model={models('qwen2-tied')}", f"tasks.path={folder / 'tasks.jsonl'}",
        f"out={seen.out}", "tasks.reward={judge: 1.0}", f"rewards.options.judge.url=http://127.0.0.1:{server.server_port}/v1",
        "rewards.options.judge.model=j", f"rewards.options.judge.key_file={folder / 'key'}", "rewards.timeout=200",
        "rewards.options.judge.timeout=200", "rewards.options.judge.request_timeout=200", "learner.workers=2", "loop.steps=2",
        "eval.tasks=0", "log.wandb=test",
        **SECRETS, WANDB_MODE="offline", RAY_AUTH_MODE="disabled", RAY_ADDRESS="",
    )  # fmt: skip
    watching = threading.Thread(target=watch, args=(process.pid, seen), daemon=True)
    watching.start()
    try:
        deadline = time.monotonic() + 120
        while not Judge.keys and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if Judge.keys:  # every part is up and at work
            look(process.pid, seen)
        Judge.looked.set()
        seen.text = process.communicate(timeout=120)[0]
    finally:
        process.kill()
        server.shutdown()
    watching.join(10)
    seen.code = process.returncode
    assert seen.code == 0, seen.text[-3000:]
    return seen


def family(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def watch(pid: int, seen: Seen) -> None:
    """Who listens, and what stands in the arguments of processes, as long as the run lives."""
    while processes := [p for p in family(pid) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        for process in processes:
            try:
                seen.arguments.add(" ".join(process.cmdline()))
                for one in process.net_connections("inet"):
                    if one.status == psutil.CONN_LISTEN or (one.type.name == "SOCK_DGRAM" and not one.raddr):
                        seen.listening.setdefault(one.laddr.ip, set()).add(process.name())
            except psutil.Error:  # ended since it was listed
                continue
        time.sleep(0.3)


def look(pid: int, seen: Seen) -> None:
    """From outside, at the Ray of a run that is going on."""
    raylet = next(p for p in family(pid) if p.name() == "raylet")
    token = Path(raylet.environ()["RAY_AUTH_TOKEN_PATH"])
    address = next(a.partition("=")[2] for a in raylet.cmdline() if a.startswith("--gcs-address="))
    seen.private, seen.token = token.parent, token.read_text()
    seen.modes = {"folder": seen.private.stat().st_mode & 0o777, "token": token.stat().st_mode & 0o777}
    seen.metadata = asked(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    seen.stranger = asked(address, RAY_AUTH_MODE="disabled")
    for file in seen.private.rglob("*"):
        if file.is_file() and file != token:
            seen.session[str(file)] = file.read_bytes()


def asked(address: str, **environment: str) -> str:
    """What the GCS tells somebody with this environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", METADATA, address], env=clean | environment, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


def told(secret: str, seen: Seen) -> list[str]:
    """Everywhere that `secret` can be read."""
    needle = secret.encode()
    places = {str(file): file.read_bytes() for file in seen.out.rglob("*") if file.is_file()} | seen.session
    places |= {f"arguments: {a[:80]}": a.encode() for a in seen.arguments}
    places |= {"the terminal": seen.text.encode(), "Ray's metadata": seen.metadata.encode()}
    return [place for place, content in places.items() if needle in content]


def test_nothing_listens_but_on_loopback(run):
    assert {"raylet", "gcs_server"} <= set().union(*run.listening.values()), "it was not looked at"
    outward = {ip: names for ip, names in run.listening.items() if not loopback(ip)}
    assert not outward


def loopback(ip: str) -> bool:
    address = ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_a_ray_of_our_own_lets_nobody_in_without_its_token(run):
    """Also where the environment says that tokens are off: that is about other clusters."""
    assert "InvalidAuthToken" in run.stranger
    assert run.modes == {"folder": 0o700, "token": 0o600}
    assert len(run.token) == 64


def test_the_token_goes_with_the_run(run):
    assert not run.private.exists()


def test_no_secret_can_be_read_anywhere(run):
    assert Judge.keys == {f"Bearer {JUDGES}"}, "the judge was not asked with the key of its file"
    assert [*(run.out / "wandb").glob("offline-run-*")], "W&B was not used"
    assert len(run.session) > 5, "Ray's folder was not looked at"
    assert "become" in run.metadata or "Host" in run.metadata, run.metadata[-2000:]
    found = {
        name: told(secret, run) for name, secret in (SECRETS | {"the judge's key": JUDGES, "Ray's token": run.token}).items()
    }
    assert not {name: places for name, places in found.items() if places}


def test_a_secret_in_a_recipe_is_refused_and_not_told(models, digits, tmp_path):
    secret = "sk-SENTINEL-in-a-recipe"
    process = command(
        "train", "recipes/debug.yaml", f"model={models('qwen2-tied')}", f"tasks.path={digits}", f"out={tmp_path / 'run'}",
        f"rewards.options.judge={{url: 'http://localhost/v1', model: j, key: {secret}}}",
    )  # fmt: skip
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 2, text
    assert "say key_file" in text
    assert secret not in text
    assert not (tmp_path / "run").exists()
