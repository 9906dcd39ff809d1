"""An engine of two vLLM workers on the CPU: weights by every transport of one host, by broadcast, and what is left of it."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.e2e

COMMON = """
import asyncio, json, os, sys, time
from pathlib import Path
from rlreason.placement import Placement, environment

def engine(out, **vllm):
    config = Config(model=sys.argv[1], out="", tasks=TasksConfig(max_prompt=32),
                    rollout=RolloutConfig(max_tokens=16, vllm={"tensor_parallel_size": 2} | vllm))
    return Rollout(config, sys.argv[1], "cpu")

if __name__ == "__main__":  # vLLM's workers import this file, and need none of it
    os.environ.update(environment(Placement("cpu", False, "shm", 1, 1)))
    import torch
    from transformers import AutoModelForCausalLM
    from rlreason.config import Config, RolloutConfig, TasksConfig
    from rlreason.errors import Wounded
    from rlreason.forward import token_logprobs
    from rlreason.rollout import Rollout
    from rlreason.types import Task
    from rlreason.weights import Publisher, Source
"""

WEIGHTS = """
async def main():
    told = {"gaps": {}}
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    rollout = engine(sys.argv[2])
    canary = list(range(3, 19))

    @torch.no_grad()
    def logprobs(tokens):
        return token_logprobs(model(input_ids=torch.tensor([tokens])).logits, torch.tensor([tokens]))[0]

    def learned():
        with torch.no_grad():
            for p in model.parameters():  # every tensor changes
                p += 0.05 * torch.randn_like(p)

    def checked(handle):
        return handle | {"canary": {"tokens": canary, "logprobs": logprobs(canary).tolist(), "tolerance": 1e-3}}

    async def gap(version):
        groups = await asyncio.gather(*(rollout.sample(Task(str(i), "abc:", "1"), 2, (version, i, 3)) for i in range(3)))
        return max((logprobs(s.tokens.tolist()) - torch.from_numpy(s.logprobs))[torch.from_numpy(s.mask)].abs().max().item()
                   for g in groups for s in g.samples)

    version = 0
    for kind in ("shm", "file", "delta"):
        publisher, told["gaps"][kind] = Publisher(kind, Path(sys.argv[2], kind)), []
        for _ in range(2):
            learned()
            await rollout.load(checked(publisher.publish(model.named_parameters())), version)
            told["gaps"][kind].append(await gap(version))
            version += 1

    publisher, told["gaps"]["broadcast"] = Publisher("broadcast"), []
    for meeting in range(2):  # the second as after a loss: a group that is formed anew
        port = publisher.open("127.0.0.1", 3, 60.0)
        ours = asyncio.create_task(asyncio.to_thread(publisher.connect))
        await asyncio.sleep(0.1)
        asking = [asyncio.ensure_future(rollout.sample(Task(f"f{i}", "abc", "1"), 4)) for i in range(4)]  # it goes on stepping
        await asyncio.sleep(0.05)
        assert await rollout.join("127.0.0.1", port, 1, 3, 60.0) and await ours
        told["in flight"] = [len(g.samples) for g in await asyncio.gather(*asking)]
        for _ in range(2):
            learned()
            source = Source.of(model.named_parameters())
            handle = checked(publisher.publish(source))
            sending = asyncio.create_task(asyncio.to_thread(publisher.send, source))
            await asyncio.sleep(0.1)
            await rollout.load(handle, version)
            assert await sending
            told["gaps"]["broadcast"].append(await gap(version))
            version += 1

    cut = asyncio.create_task(asyncio.to_thread(lambda: time.sleep(1) or publisher.interrupt()))
    await asyncio.sleep(0)
    began = time.monotonic()
    told["cut off"] = [await rollout.load(handle, version), time.monotonic() - began]
    await cut

    # What is not there any more, and then what is: no answer of a worker is left behind for the next call.
    publisher = Publisher("shm")
    learned()
    handle = checked(publisher.publish(model.named_parameters()))
    told["gone"] = [await rollout.load(handle | {"path": "/proc/0/fd/3"}, version) for _ in range(2)]
    await rollout.load(handle, version)
    told["after"] = await gap(version)
    lost = Publisher("delta", Path(sys.argv[2], "lost"))
    handle = checked(lost.publish(model.named_parameters()))
    for file in Path(sys.argv[2], "lost").iterdir():
        file.unlink()
    try:
        await rollout.load(handle, version)
    except Wounded as error:
        told["damaged"] = str(error)
    told["workers"] = type(rollout.engine.engine_core.engine_core.model_executor).__name__
    await rollout.close()
    print(json.dumps(told))

if __name__ == "__main__":
    asyncio.run(main())
"""

STUCK = """
def blocked(worker):
    time.sleep(90)

if __name__ == "__main__":
    import threading
    rollout = engine(sys.argv[2])
    if sys.argv[3] == "blocked":
        threading.Thread(target=lambda: rollout.engine.collective_rpc(blocked), daemon=True).start()
        time.sleep(2)
    print("up", flush=True)
    time.sleep(600)
"""


def start(script: str, model, out, *more: str) -> subprocess.Popen:
    file = out / "script.py"
    file.write_text(COMMON + script)
    return subprocess.Popen(
        [sys.executable, str(file), str(model), str(out), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_every_transport_reaches_both_workers(models, tmp_path):
    process = start(WEIGHTS, models("qwen2-tied"), tmp_path)
    try:
        text, errors = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    told = json.loads(text.splitlines()[-1])
    assert told["workers"] == "MultiprocExecutor"
    assert {kind: len(gaps) for kind, gaps in told["gaps"].items()} == {"shm": 2, "file": 2, "delta": 2, "broadcast": 4}
    assert max(gap for gaps in told["gaps"].values() for gap in gaps) < 1e-5
    result, seconds = told["cut off"]
    assert result is None, "a broadcast that nobody sends, and that is cut off after a second"
    assert seconds < 5
    assert told["in flight"] == [4] * 4, "requests wait while the engine joins a group, and are answered then"
    assert told["gone"] == [None, None]
    assert told["after"] < 1e-5
    assert "is lost" in told["damaged"]


@pytest.mark.parametrize("how", ["idle", "blocked"])
def test_workers_end_with_their_engine_whatever_they_do(models, tmp_path, how):
    process = start(STUCK, models("qwen2-tied"), tmp_path, how)
    try:
        assert "up" in [process.stdout.readline().strip() for _ in range(1)], process.stderr.read()[-2000:]
        below = psutil.Process(process.pid).children(recursive=True)
        workers = [p for p in below if "Worker_TP" in " ".join(p.cmdline())]
        assert len(workers) == 2, [p.cmdline() for p in below]
        process.kill()
        process.wait()
        began = time.monotonic()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        assert time.monotonic() - began < 3, "the kernel ends them, whatever they are doing"
    finally:
        process.kill()
