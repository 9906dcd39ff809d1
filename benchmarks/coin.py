"""A reward for work that has to be the same whatever the model: half of all answers earn it, whoever writes them."""

from __future__ import annotations

from zlib import crc32

from rlreason.types import Task


def heads(task: Task, text: str) -> float:
    return float(crc32(f"{task.id} {text}".encode()) % 2)
