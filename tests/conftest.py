"""What every test may use: small values, made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings

from rlreason import puzzles
from rlreason.types import Sample

settings.register_profile("no-deadline", deadline=None)  # a loaded machine makes no test wrong
settings.load_profile("no-deadline")


def sample(prompt: int, answer: int, reward: float | None = None, logp: float = -1.0, version: int = 0) -> Sample:
    """A sample of `prompt` + `answer` tokens, each answer token with log-probability `logp`."""
    length = prompt + answer
    mask = np.arange(length) >= prompt
    return Sample(
        np.arange(length, dtype=np.int32) % 7,
        mask,
        np.where(mask, logp, 0).astype(np.float32),
        "",
        version,
        reward=reward,
    )


@pytest.fixture(name="sample")
def _sample():
    return sample


@pytest.fixture(scope="module", autouse=True)
def no_puzzle_maker_outlives_its_module():
    """The process that makes reasoning-gym's puzzles lives as long as the one that asks it, which here is pytest."""
    yield
    puzzles.end()
