"""How weights travel from the learner to the engines.

A publication is described by a *handle*: a small dictionary that passes through Ray. Its `kind` is one of

    shm        host memory of the learner, mapped by every engine of the same host
    file       a Hugging Face directory: the fallback, and what an engine reads after a restart
    delta      files of what has changed, for a slow link between hosts
    ipc        device memory of a learner that shares the engine's GPU
    broadcast  a collective of learner rank 0 and every vLLM worker: NCCL between GPUs, gloo between CPUs

and `names`, `dtypes`, `shapes` describe the tensors, in the order in which they travel.

`publisher` is the learner's end, `receiver` the engine's, `broadcast` the process group that both join.
"""

from __future__ import annotations

from rlreason.weights.publisher import Publisher
from rlreason.weights.tensors import Handle, Source, Spec, buckets, joined, parted

__all__ = ["Handle", "Publisher", "Source", "Spec", "buckets", "joined", "parted", "register"]

BACKEND = "rlreason"  # the name under which vLLM's weight-transfer API knows our receiver


def register() -> None:
    """Register the receiver with vLLM, in every process that runs a vLLM worker.

    This is the entry point `vllm.general_plugins` of `pyproject.toml`: the workers of a tensor parallel engine are processes
    that vLLM starts, which know nothing else of rlreason.
    """
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    from rlreason.weights.lifetime import die_with_engine

    die_with_engine()
    try:
        WeightTransferEngineFactory.register_engine(BACKEND, "rlreason.weights.receiver", "Receiver")
    except ValueError as error:
        if "already registered" not in str(error):
            raise
