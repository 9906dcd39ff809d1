"""A run over two hosts, which are namespaces of this machine: Ray, vLLM and DeepSpeed with a network between them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hosts import Cluster, cluster, missing, two_hosts
from real import Run, rlreason

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(missing()), reason=missing())]
TRANSPORTS = [pytest.param("file", marks=pytest.mark.long), "broadcast"]
RECIPE = "recipes/debug.yaml"
SFT = ("algorithm.answers=recorded", "algorithm.loss=nll", "loop.samples=1", "loop.groups=8", "learner.workers=2")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # else sums depend on how many cores a host has


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def tasks(digits, tmp_path_factory) -> Path:
    """The digits, with demonstrations."""
    path = tmp_path_factory.mktemp("demonstrated") / "digits.jsonl"
    rows = [json.loads(line) for line in digits.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"response": f"it is {row['answer']}"}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def options(models, tasks) -> list[str]:
    return [RECIPE, f"model={models('qwen2-tied')}", f"tasks.path={tasks}", "eval.tasks=0", "loop.steps=6"]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory) -> Run:
    """The same run on one host."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run = rlreason("train", *options, f"out={out}", out=out, **ONE_THREAD)
    assert run.code == 0, run.text
    return run


def plain(rows: list[dict]) -> list[dict]:
    """Metrics without what a clock told."""
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def model(out: Path) -> bytes:
    return (out / "weights" / "last" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_learner_and_engine_on_two_hosts_learn_what_they_learn_on_one(hosts, options, alone, tmp_path, transport):
    run = hosts.train(tmp_path / "run", *options, f"transport={transport}", **ONE_THREAD)
    assert sorted(run.hosts("learner-0", "rollout-0")) == ["left", "right"]
    run.whole(6)
    assert plain(run.rows()) == plain(alone.rows)
    assert model(run.out) == model(alone.out)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_engine_that_is_killed_on_its_host_is_replaced(hosts, options, tmp_path, transport):
    run = hosts.train(tmp_path / "run", *options, "loop.steps=30", f"transport={transport}")
    before = run.hosts("learner-0", "rollout-0")
    run.step(3)
    run.strike("rollout-0")
    audit = run.whole(30)
    assert (audit.trained, audit.dropped) == (30 * 4, {})
    assert [(row["name"], row["what"]) for row in run.events("engine")] == [("rollout-0", "lost"), ("rollout-0", "back")]
    assert sorted(before) == ["left", "right"]


@pytest.mark.long
def test_learners_on_two_hosts_meet_and_learn_what_they_learn_on_one(hosts, options, tmp_path):
    """gloo listens under the address by which the other host reaches it, and not under that of the host's own name."""
    run = hosts.train(tmp_path / "run", *options, *SFT, **ONE_THREAD)
    assert sorted(run.hosts("learner-0", "learner-1")) == ["left", "right"]
    run.whole(6)
    one = tmp_path / "one"
    alone = rlreason("train", *options, *SFT, f"out={one}", out=one, **ONE_THREAD)
    assert alone.code == 0, alone.text
    assert plain(run.rows()) == plain(alone.rows)
    assert model(run.out) == model(one)


def test_hosts_end_with_the_tests_that_made_them():
    """However those end: by SIGKILL, too. Others that are made meanwhile do not meet them."""
    script = (
        "import hosts, time\nwith hosts.two_hosts() as made: print(made[0].first, made[0].folder, flush=True), time.sleep(99)"
    )
    tests = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    assert tests.stdout
    try:
        first, folder = tests.stdout.readline().split()
        host = psutil.Process(int(first))
        with two_hosts() as others:
            assert not others[0].has(host.pid)
            assert folder != str(others[0].folder)
    finally:
        tests.kill()
        tests.communicate()
    host.wait(10)
    deadline = time.monotonic() + 10
    while Path(folder).parent.exists():  # the other host is about to end
        assert time.monotonic() < deadline
        time.sleep(0.02)
