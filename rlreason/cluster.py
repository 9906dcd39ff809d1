"""Ray: which process runs where, and how they are spoken to. The only file that imports it."""

from __future__ import annotations

import asyncio
import errno
import importlib
import inspect
import itertools
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import get_node_ip_address

from rlreason import checkpoint
from rlreason.config import Config
from rlreason.errors import Failure, ResourceError, RolloutError, StorageError
from rlreason.placement import clash, environment, place
from rlreason.types import Group, Metrics, Task

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE}  # a storage's troubles


class Host:
    """One process. It becomes a Learner or a Rollout, which it alone imports: the driver stays light."""

    def __init__(self, name: str, out: str):
        """What the process prints goes to a file of the run, and not through the driver's terminal."""
        path = Path(out).absolute() / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        self.it: Any = None

    async def become(self, module: str, kind: str, *args: Any) -> None:
        self.it = getattr(importlib.import_module(module), kind)(*args)

    async def call(self, method: str, *args: Any) -> Any:
        result = getattr(self.it, method)(*args)
        return await result if inspect.isawaitable(result) else result

    async def address(self) -> tuple[str, int]:
        """This node, and a port of it that is free now."""
        with socket.socket() as s:
            s.bind(("", 0))
            return get_node_ip_address(), s.getsockname()[1]


class Worker:
    """A Host, seen from the driver: `await worker.call("step", groups)`, with failures that say what happened."""

    def __init__(self, name: str, out: str, failure: type[Failure], **options: Any):
        self.name, self.log, self.failure = name, Path(out) / "logs" / f"{name}.log", failure
        self.actor = ray.remote(Host).options(**options).remote(name, out)

    async def become(self, module: str, kind: str, *args: Any) -> None:
        await self._told(self.actor.become.remote(module, kind, *args))

    async def call(self, method: str, *args: Any) -> Any:
        return await self._told(self.actor.call.remote(method, *args))

    async def address(self) -> tuple[str, int]:
        return await self._told(self.actor.address.remote())

    async def _told(self, reply: Awaitable[Any]) -> Any:
        try:
            return await reply
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OSError) and cause.errno in FULL:
                raise StorageError(f"{self.name}: {cause}") from None
            raise self.failure(
                f"{self.name} failed: {type(cause).__name__}: {cause}\nthe whole story is in {self.log}\n{self._last_words()}"
            ) from error
        except RayActorError as error:
            why = str(error).strip().splitlines()
            raise self.failure(f"{self.name} died: {why[-1] if why else error}\n{self._last_words()}") from None

    def _last_words(self, lines: int = 12) -> str:
        if not self.log.exists():
            return f"it left no {self.log}"
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"the last lines of {self.log}:", *(f"    {line[:300]}" for line in tail)])


class Learners:
    """Every learner process, spoken to as one."""

    def __init__(self, config: Config, workers: list[Worker], read: bool = True):
        """`read`: are there engines that read what is published?"""
        self.config, self.workers, self.read, self.version = config, workers, read, 0

    async def step(self, groups: list[Group]) -> Metrics:
        shared = ray.put(groups)
        metrics: list[Metrics] = await self._all("step", shared)
        self.version += 1
        return metrics[0]

    async def publish(self) -> dict[str, Any]:
        return (await self._all("publish"))[0] if self.read else {}

    async def save(self, cursor: int) -> None:
        """Commit a checkpoint, and write the weights as a Hugging Face directory beside it."""
        out = Path(self.config.out)
        folder = out / "checkpoints" / f"v{self.version}"
        state = {"version": self.version, "cursor": cursor}
        await self._all("save", str(folder.absolute()), state)
        await self._all("export", str((out / "weights" / f"v{self.version}").absolute()))
        checkpoint.commit(folder, state)
        checkpoint.point(out / "weights" / "last", f"v{self.version}")
        checkpoint.prune(folder.parent)
        checkpoint.prune_weights(out / "weights", folder.parent)

    async def digest(self) -> str:
        """`manifest.weights` of what the learners hold."""
        return str((await self._all("digest"))[0])

    async def restore(self, folder: Path) -> int:
        """Go back to a checkpoint; returns its cursor."""
        states = await self._all("restore", str(folder.absolute()))
        self.version = states[0]["version"]
        return int(states[0]["cursor"])

    async def _all(self, method: str, *args: Any) -> list[Any]:
        return await asyncio.gather(*(w.call(method, *args) for w in self.workers))


class Rollouts:
    """Every engine, spoken to as one: each task goes to the engine that owes the fewest answers."""

    def __init__(self, workers: list[Worker]):
        self.workers = workers
        self.owed = [0] * len(workers)
        self.asked: list[tuple[Task, int, asyncio.Future[Group]]] = []
        self.waves = itertools.count()

    async def sample(self, task: Task, n: int) -> Group:
        """What is asked in one turn of the event loop reaches each engine as one wave (see `Rollout.sample`).

        When nothing is owed the deal depends on nothing but the order of asking, so on-policy runs repeat to the bit.
        """
        loop = asyncio.get_running_loop()
        if not self.asked:
            loop.call_soon(self._deal)
        answer: asyncio.Future[Group] = loop.create_future()
        self.asked.append((task, n, answer))
        return await answer

    def _deal(self) -> None:
        wave: list[list[tuple[Task, int, asyncio.Future[Group]]]] = [[] for _ in self.workers]
        for asked in self.asked:
            least = self.owed.index(min(self.owed))
            self.owed[least] += 1
            wave[least].append(asked)
        self.asked = []
        number = next(self.waves)
        for engine, share in enumerate(wave):
            for place_, (task, n, answer) in enumerate(share):
                asking = self.workers[engine].call("sample", task, n, (number, place_, len(share)))
                asyncio.ensure_future(asking).add_done_callback(partial(self._hand_over, engine, answer))

    def _hand_over(self, engine: int, answer: asyncio.Future[Group], done: asyncio.Future[Group]) -> None:
        self.owed[engine] -= 1
        if done.cancelled():
            answer.cancel()
        elif answer.cancelled():
            done.exception()  # seen, and of no interest any more
        elif error := done.exception():
            answer.set_exception(error)
        else:
            answer.set_result(done.result())

    async def load(self, weights: dict[str, Any], version: int) -> None:
        shared = ray.put(weights)
        await asyncio.gather(*(w.call("load", shared, version) for w in self.workers))

    async def sleep(self) -> None:
        await asyncio.gather(*(w.call("sleep") for w in self.workers))

    async def close(self) -> None:
        await asyncio.gather(*(w.call("close") for w in self.workers))


class TakingTurns(Learners):
    """Learners on the GPU of the engine, which sleeps while they step and wakes when it gets their weights."""

    def __init__(self, config: Config, workers: list[Worker], rollouts: Rollouts):
        super().__init__(config, workers)
        self.rollouts = rollouts

    async def step(self, groups: list[Group]) -> Metrics:
        await self.rollouts.sleep()
        return await super().step(groups)


@asynccontextmanager
async def start(
    config: Config, model: str, made: bool, learners: int, rollouts: int
) -> AsyncIterator[tuple[Learners, Rollouts]]:
    """Start learners and engines side by side, hand them out, and end every process afterwards."""
    out = str(Path(config.out).absolute())
    if wrong := clash({d.name.lower(): d.version for d in distributions()}):
        raise ResourceError(wrong)
    shared = ray.is_initialized()
    if not shared:
        _connect()
    ranks: list[Worker] = []
    engines: list[Worker] = []
    free = ray.available_resources()
    try:
        there = place(config, ray.cluster_resources(), len(ray.nodes()), learners, rollouts)
        width = int(config.rollout.vllm.get("tensor_parallel_size", 1))
        common = {"runtime_env": {"env_vars": environment(there)}, "num_cpus": there.cpus, "max_concurrency": 100_000}
        gpu = (0.5 if there.share else 1) if there.device == "cuda" else 0
        ranks += [Worker(f"learner-{i}", out, Failure, num_gpus=gpu, **common) for i in range(learners)]
        engines += [Worker(f"rollout-{i}", out, RolloutError, num_gpus=gpu * width, **common) for i in range(rollouts)]

        begin = asyncio.ensure_future
        waking = [begin(w.become("rlreason.rollout", "Rollout", config, model, there.device, there.share)) for w in engines]
        if there.share:  # an engine measures what memory is free, and must not find the learner half loaded
            await asyncio.gather(*waking)
            waking = []
        if ranks:
            host, port = await ranks[0].address()
            about = (config, model, made, there.device, there.transport, f"{host}:{port}")
            waking += [begin(w.become("rlreason.learner", "Learner", rank, *about)) for rank, w in enumerate(ranks)]
        await asyncio.gather(*waking)
        if there.transport == "nccl" and ranks and engines:
            await _meet(ranks[0], engines, width)

        fleet = Rollouts(engines)
        body = TakingTurns(config, ranks, fleet) if there.share else Learners(config, ranks, bool(engines))
        yield body, fleet
        await fleet.close()
    finally:
        if shared:
            await _end([*ranks, *engines], free)
        else:
            ray.shutdown()


@contextmanager
def connected() -> Iterator[None]:
    """One Ray for all that is started inside, one after the other: it takes seconds to come up."""
    if ray.is_initialized():
        yield
        return
    _connect()
    try:
        yield
    finally:
        ray.shutdown()


def _connect() -> None:
    address = os.environ.get("RAY_ADDRESS", "local")  # without one, a Ray of our own, whoever else runs one here
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it announces that tokens are on
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which exits at once


async def _end(workers: list[Worker], free: dict[str, float], patience: float = 30.0) -> None:
    """End the processes, and wait until what they held is free as it was: the next ones measure what there is."""
    for worker in workers:
        ray.kill(worker.actor)
    deadline = asyncio.get_running_loop().time() + patience
    while asyncio.get_running_loop().time() < deadline:
        now = ray.available_resources()
        if all(now.get(kind, 0.0) >= free.get(kind, 0.0) - 1e-6 for kind in ("CPU", "GPU")):
            return
        await asyncio.sleep(0.05)
    raise ResourceError(f"processes that were ended {patience:g} s ago still hold their CPUs or GPUs")


async def _meet(learner: Worker, engines: Sequence[Worker], width: int) -> None:
    host, port = await learner.address()
    world = 1 + width * len(engines)
    await asyncio.gather(
        learner.call("join", host, port, world),
        *(w.call("join", host, port, 1 + i * width, world) for i, w in enumerate(engines)),
    )
