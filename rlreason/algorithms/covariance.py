"""Tokens whose covariance between log-probability and advantage is high make entropy collapse (2505.22617).

Cov_t = (A_t - mean A) (log p_t - mean log p), means over all tokens of the batch. It is worked out from the sampler's
log-probabilities before the batch is cut, so that every rank finds the same few tokens: what follows is only data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Chosen = NDArray[np.bool_]


def clip_cov(cov: Array, rng: np.random.Generator, share: float = 2e-4, low: float = 1.0, high: float = 5.0) -> Chosen:
    """A random `share` of all tokens (at least one), among those with low < Cov < high: they get no gradient. [T]"""
    candidates = np.flatnonzero((cov > low) & (cov < high))
    chosen = np.zeros(len(cov), bool)
    number = min(len(candidates), max(1, int(share * len(cov))))
    chosen[rng.permutation(candidates)[:number]] = True
    return chosen


def kl_cov(cov: Array, rng: np.random.Generator, share: float = 2e-3, coefficient: float = 1.0) -> Chosen:
    """The top `share` of all tokens by Cov (at least one): `coefficient` · |log r| is added to their loss. [T]

    The paper's code takes 0.002 for 7B models and 0.0002 for 32B.
    """
    chosen = np.zeros(len(cov), bool)
    if len(cov):
        chosen[np.argsort(-cov, kind="stable")[: max(1, int(share * len(cov)))]] = True
    return chosen


def covariance(advantage: Array, logp: Array) -> Array:
    """Cov of each token, from those of the whole batch. [T], [T] -> [T]"""
    return (advantage - advantage.mean()) * (logp - logp.mean()) if len(logp) else np.zeros(0)


COVARIANCE: dict[str, Callable[..., Chosen]] = {f.__name__: f for f in (clip_cov, kl_cov)}
