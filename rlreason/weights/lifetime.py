"""The lifetime of a tensor parallel engine's workers: they end when the engine does, whatever they are doing.

vLLM's own watch over its parent is a Python thread, which ends a worker only after its present call returns: one that is
blocked in a collective would keep its GPU memory.
"""

from __future__ import annotations

import os

from rlreason.signals import die_with

ENGINE = "RLREASON_ENGINE_PID"  # of the process that owns the workers, in their environment


def own_workers() -> None:
    """Mark this process as the engine with which the workers that it starts end."""
    os.environ[ENGINE] = str(os.getpid())


def die_with_engine() -> None:
    """Ask the kernel to kill this process when the engine that started it ends. Does nothing in any other process."""
    engine = int(os.environ.get(ENGINE, 0))
    if engine and os.getppid() == engine and not die_with(engine):
        os._exit(1)
