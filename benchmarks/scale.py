"""What the driver itself costs a step: the real loop, fleet and Ray, with workers that answer at once and have no model.

    python benchmarks/scale.py [steps=6] [WORKERSxSAMPLES …]

Up to 1,024 engines, in a few processes that stand for all of them, and a learner that does nothing with what it is
given. So all that a step takes is the driver's, and Ray's. Prints a line per case, with the memory of the driver and of the
object store after a tenth of the steps and after all of them; without a case, of all in `CASES`.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import re
import sys
import time
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
import ray
from ray._private.internal_api import memory_summary

from rlreason import cluster, pulse
from rlreason.body import Learners
from rlreason.config import Config, LoopConfig, RecoveryConfig
from rlreason.errors import Failure, RolloutError
from rlreason.fleet import Rollouts
from rlreason.loop import train
from rlreason.types import Group, Metrics, Sample, Task
from rlreason.waves import Waves
from rlreason.worker import Worker

PROCESSES = 4  # that stand for all engines
PER_GROUP = 8
TOKENS = 72  # of a sample, eight of them the prompt's
CASES = [(1, 8), (1, 512), (1, 8192), (16, 512), (16, 8192), (256, 512), (256, 8192), (256, 65536), (1024, 8192), (1024, 65536)]
STEPS = 6


class Answering:
    """An engine without a model."""

    def __init__(self) -> None:
        self.version, waves = 0, Waves(self.sample)
        self.answer, self.more = waves.answer, waves.more

    async def sample(self, task: Task, n: int, wave: Any = None) -> Group:
        tokens, mask = np.arange(TOKENS, dtype=np.int32), np.arange(TOKENS) >= 8
        logprobs = np.where(mask, -1.0, 0.0).astype(np.float32)
        return Group(task, [
            Sample(tokens.copy(), mask.copy(), logprobs.copy(), "x" * 64, self.version, reward=i % 2, parts={"exact": i % 2})
            for i in range(n)
        ])  # fmt: skip

    def load(self, weights: Any, version: int) -> float:
        self.version = version
        return 0.0

    def close(self) -> None: ...


class Learning:
    """A learner that learns nothing."""

    def step(self, groups: list[Group]) -> Metrics:
        return {"loss": 0.0, "samples": float(sum(len(group.samples) for group in groups))}

    def publish(self) -> dict[str, Any]:
        return {"kind": "nothing", "canary": {"tokens": [0] * 16, "logprobs": [0.0] * 16}}

    def save(self, path: str, state: dict[str, Any]) -> None: ...


class Crowd:
    """One process that stands for many workers."""

    def __init__(self) -> None:
        self.them: dict[str, Any] = {}

    async def call(self, name: str, method: str, *args: Any) -> Any:
        if name not in self.them:
            self.them[name] = Learning() if name.startswith("learner") else Answering()
        result = getattr(self.them[name], method)(*args)
        return await result if inspect.isawaitable(result) else result

    @ray.method(concurrency_group="life")  # type: ignore[untyped-decorator]
    async def pulse(self) -> pulse.Pulse:
        pulse.beat("there")
        return pulse.feel("", 0)


class One(Worker):
    """A worker of that crowd, spoken to as any other."""

    def __init__(self, name: str, crowd: Any):
        super().__init__(name, "runs/scale", Failure if name.startswith("learner") else RolloutError)
        self.crowd = crowd

    def spawn(self) -> None:
        self.actor = self.crowd

    async def become(self, *what: Any) -> None: ...

    async def call(self, method: str, *args: Any) -> Any:
        return await self._told(self.actor.call.remote(self.name, method, *args))

    def kill(self) -> None: ...


class Unsaved(Learners):
    async def save(self, cursor: int, pending: Any = ()) -> None: ...


class Step(NamedTuple):
    seconds: float  # by the clock
    cpu: float  # seconds of this process's threads, Ray's among them
    memory: int  # bytes that it holds afterwards
    store: float  # MB in the object store


def stored() -> float:
    """MB of the object store that are in use."""
    told = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)  # whoever else runs one here
    return float(re.search(r"Plasma memory usage ([\d.]+) MiB", told)[1]) * 2**20 / 1e6  # type: ignore[index]


async def steps(workers: int, samples: int, crowds: list[Any], learner: Any, number: int = STEPS) -> list[Step]:
    groups = max(1, samples // PER_GROUP)
    config = Config(model="", out="runs/scale", recovery=RecoveryConfig(),
                    loop=LoopConfig(steps=number, groups=groups, samples=min(samples, PER_GROUP), save_every=0))  # fmt: skip
    fleet = Rollouts([One(f"rollout-{i}", crowds[i % len(crowds)]) for i in range(workers)], (), config.recovery, ray.put,
                     lambda *a, **k: print(*a, file=sys.stderr))  # fmt: skip
    body = Unsaved(config, [One("learner-0", learner)], (), ray.put, lambda *a, **k: None)
    tasks = (Task(str(i), f"what is {i}?", str(i)) for i in itertools.count())
    found: list[Step] = []
    early = max(1, number // 10)
    began = time.process_time()

    def log(step: int, batch: list[Group], metrics: Metrics) -> None:
        nonlocal began
        cpu = time.process_time() - began
        found.append(
            Step(metrics["time/step"], cpu, psutil.Process().memory_info().rss, stored() if step in (early, number) else 0.0)
        )
        began = time.process_time()

    async with fleet:
        await fleet.begin()
        for rank in body.ranks:
            rank.spawn()
        await fleet.load(await body.publish(), 0)
        await train(config.loop, tasks, fleet, body, log=log)
    return found


def main(chosen: list[tuple[int, int]], number: int = STEPS) -> None:
    with cluster.connected():
        made = ray.remote(concurrency_groups={"life": 4}, num_cpus=0, max_concurrency=10_000)(Crowd)
        crowds, learner = [made.remote() for _ in range(PROCESSES)], made.remote()
        for workers, samples in chosen or CASES:
            found = asyncio.run(steps(workers, samples, crowds, learner, number))
            early = found[max(1, number // 10) - 1]
            seconds, cpu = median(step.seconds for step in found[1:]), median(step.cpu for step in found[1:])
            print(f"{workers:5} workers, {samples:6} samples: {seconds:.3f} s a step, of which the driver works {cpu:.3f} s, "
                  f"{1e6 * cpu / samples:.0f} µs a sample; driver {early.memory / 1e6:.0f}, {found[-1].memory / 1e6:.0f} MB, "
                  f"object store {early.store:.0f}, {found[-1].store:.0f} MB", flush=True)  # fmt: skip


if __name__ == "__main__":
    told = [argument.removeprefix("steps=") for argument in sys.argv[1:] if argument.startswith("steps=")]
    cases = [tuple(map(int, case.split("x"))) for case in sys.argv[1:] if not case.startswith("steps=")]
    main(cases, *map(int, told))  # type: ignore[arg-type]
