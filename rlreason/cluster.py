"""Ray: which process runs where, and how they are spoken to. The only file that imports it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")  # we tell it ourselves, in a line

import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlreason import nodes, pulse, undertaker
from rlreason.body import Learners, TakingTurns
from rlreason.config import Config
from rlreason.errors import Failure, ResourceError, RolloutError
from rlreason.fleet import Rollouts, Say
from rlreason.placement import ALIASES, Placement, clash, environment, parallel_size, place
from rlreason.worker import Worker, log_of

RESERVED = 60.0  # seconds in which Ray reserves what is free, with what it is told of nodes in between
STARTS = 180.0  # seconds in which Ray is up, or never will be


@asynccontextmanager
async def start(
    config: Config, model: str, made: bool, learners: int, rollouts: int, say: Say
) -> AsyncIterator[tuple[Learners, Rollouts]]:
    """Start learners and engines side by side, hand them out, and end every process afterwards. `say` is told
    (event, text, details) of processes that are lost and replaced."""
    out = str(Path(config.out).absolute())
    if wrong := clash({d.name.lower(): d.version for d in distributions()}):
        raise ResourceError(wrong)
    shared = ray.is_initialized()
    if not shared:
        _connect()
    free = ray.available_resources()
    workers: list[Worker] = []
    body: Learners | None = None
    reserved: PlacementGroup | None = None
    try:
        _compare(out)
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        there = place(config, alive, learners, rollouts)
        if config.transport in ALIASES:
            name = ALIASES[config.transport]
            say(
                "deprecated", f"transport: {config.transport} is called {name} now; set transport={name}", what=config.transport
            )
        width = parallel_size(config.rollout.vllm)
        common = {"runtime_env": {"env_vars": environment(there, len(alive))}, "max_concurrency": 100_000}
        gpu = (0.5 if there.share else 1) if there.device == "cuda" else 0
        reserved, of_ranks, of_engines = await asyncio.to_thread(_reserve, there, width, learners, rollouts)
        ranks = [Worker(f"learner-{i}", out, Failure, num_cpus=there.cpus, num_gpus=gpu, **common, **where)
                 for i, where in enumerate(of_ranks)]  # fmt: skip
        wide = {"num_cpus": there.cpus * width, "num_gpus": gpu * width} | common
        engines = [Worker(f"rollout-{i}", out, RolloutError, **wide, **where) for i, where in enumerate(of_engines)]
        workers += [*ranks, *engines]

        what = ("rlreason.rollout", "Rollout", config, model, there.device, there.share)
        about = (config, model, made, there.device, there.transport)
        fleet = Rollouts(engines, what, config.recovery, ray.put, say, there.share)
        broadcasts = there.transport == "broadcast"
        if there.share:
            body = TakingTurns(config, ranks, about, ray.put, say, fleet, broadcasts)
        else:
            body = Learners(config, ranks, about, ray.put, say, broadcasts)

        async def stacks() -> None:
            pulse.write_stacks(log_of("driver", out))
            await asyncio.gather(*(worker.stacks() for worker in workers))

        body.stacks = fleet.stacks = stacks
        async with pulse.ticking(config.recovery.hung, log_of("driver", out)), fleet:
            # An engine that shares a GPU measures what memory is free, and must not find the learner half loaded.
            await (_one_by_one if there.share else _together)(fleet.begin(), body.begin())
            yield body, fleet
            await fleet.close()
    finally:
        if body:
            body.rest()
        if shared:
            await _end(workers, reserved, free)
        else:
            ray.shutdown()


async def _one_by_one(*work: Awaitable[None]) -> None:
    for one in work:
        await one


async def _together(*work: Awaitable[None]) -> None:
    """Side by side; when one fails the others are given up, which would else start processes that nobody ends."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def roles(learners: Learners, rollouts: Rollouts) -> dict[str, list[Worker]]:
    """The processes that may be lost, by what they are."""
    engines: list[Any] = [engine.process for engine in rollouts.engines]
    ranks: list[Any] = [*learners.ranks]
    return {"rollout": engines, "learner": ranks}


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
    """Join the Ray that RAY_ADDRESS names; without one start our own, whoever else runs one here: on loopback, with a
    token. Raises `ResourceError`."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it announces that tokens are on
    handler = signal.getsignal(signal.SIGTERM)
    if not nodes.answers(address):
        raise ResourceError(nodes.refused(address, ConnectionError("nobody answers there")))
    ours = {}
    os.environ.setdefault(*nodes.TRIES)
    if address == "local":
        for name in nodes.FOREIGN:
            os.environ.pop(name, None)
        os.environ.update(nodes.alone())
        ray_constants.ENABLE_RAY_CLUSTER = False  # it read the environment when it was imported
        undertaker.keep_watch(f"RAY_AUTH_TOKEN_PATH={os.environ['RAY_AUTH_TOKEN_PATH']}", nodes.private())
        ours = {"_node_ip_address": "127.0.0.1", "_temp_dir": str(nodes.private() / "ray")}  # which it opens to all
    theirs = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None  # Ray's exits at once, and a run that starts has more to do
    try:
        with pulse.watchdog(STARTS, "Ray's start"):
            ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False, **ours)
    except (RayError, RuntimeError, ConnectionError, ValueError) as error:
        raise ResourceError(nodes.refused(address, error)) from None
    finally:
        ray_utils.set_sigterm_handler = theirs
        signal.signal(signal.SIGTERM, handler)  # whatever Ray has put there


def _compare(out: str, patience: float = 60.0) -> None:
    """Refuse nodes that cannot work together, before anything is loaded. Raises `ResourceError`."""
    there = [node for node in ray.nodes() if node["Alive"]]
    if len(there) < 2:
        return
    canary, token = Path(out) / ".canary", secrets.token_hex(8)
    canary.write_text(token)
    ask = ray.remote(num_cpus=0, max_retries=0)(nodes.report)
    replies = {
        f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})": ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(str(canary))
        for node in there
    }
    try:
        reports = dict(zip(replies, ray.get([*replies.values()], timeout=patience), strict=True))
    except (GetTimeoutError, RayError) as error:
        raise ResourceError(f"a node cannot say what it has installed: {str(error).strip().splitlines()[-1]}") from None
    finally:
        canary.unlink()
    if problem := nodes.unlike(reports, out, token):
        raise ResourceError(problem)


async def _end(workers: list[Worker], reserved: PlacementGroup | None, free: dict[str, float], patience: float = 30.0) -> None:
    """End the processes, and wait until what they held is free as it was: the next ones measure what there is."""
    for worker in workers:
        worker.kill()
    if reserved:
        remove_placement_group(reserved)
    deadline = asyncio.get_running_loop().time() + patience
    while asyncio.get_running_loop().time() < deadline:
        now = ray.available_resources()
        if all(now.get(kind, 0.0) >= free.get(kind, 0.0) - 1e-6 for kind in ("CPU", "GPU")):
            return
        await asyncio.sleep(0.05)
    raise ResourceError(f"processes that were ended {patience:g} s ago still hold their CPUs or GPUs")


def _reserve(there: Placement, width: int, learners: int, rollouts: int) -> tuple[PlacementGroup | None, list[Any], list[Any]]:
    """Reserve the resources of all processes at once, and return how each is scheduled: learners, then engines.

    Scheduled one by one, learners could take a GPU of every node and leave none whole for a tensor parallel engine. Ray places
    the largest bundles of a group first. Raises `ResourceError` if there is no room.
    """
    cuda = there.device == "cuda"
    if cuda and there.share:
        bundles = [{"CPU": 2 * there.cpus, "GPU": 1.0}]
    else:
        bundles = [{"CPU": there.cpus} | ({"GPU": 1.0} if cuda else {})] * learners
        bundles += [{"CPU": there.cpus * width} | ({"GPU": float(width)} if cuda else {})] * rollouts
    if not bundles:
        return None, [], []
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(RESERVED):
        remove_placement_group(group)
        raise ResourceError(f"Ray found no room within {RESERVED:g} s for {bundles}; each of these needs one node. Available: "
                            f"{ {k: v for k, v in ray.available_resources().items() if k in ('CPU', 'GPU')} }")  # fmt: skip

    def place(bundle: int) -> dict[str, Any]:
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)}

    if cuda and there.share:
        return group, [place(0)], [place(0)]
    return group, [place(i) for i in range(learners)], [place(learners + i) for i in range(rollouts)]
