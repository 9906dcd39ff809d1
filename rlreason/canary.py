"""The canary: a fixed prompt on which every engine is compared with the learner after each load, and how far both may differ.

Two implementations of a model differ by rounding, in bfloat16 by 0.002 to 0.4 nats depending on the model, so the tolerance is
measured on the model itself. docs/canary.md has the calibration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 32  # random ones
ROWS = 4  # in which embeddings are disturbed
FACTOR = 4.0  # the largest healthy difference in the calibration is a third of the tolerance
FLOOR = 1e-4  # nats; in float32 the largest healthy difference in the calibration is 1.1e-5


def draw(config: Any, seed: int) -> list[int]:
    """The canary's tokens, for a model of this config; shorter where the model takes fewer tokens."""
    text = config.get_text_config()
    length = min(TOKENS, (getattr(text, "max_position_embeddings", None) or TOKENS + 1) - 1)
    return torch.randint(text.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def compare(model: nn.Module, canary: list[int], device: torch.device) -> tuple[list[float], float]:
    """Log-probability under `model` of each token of `canary` given those before it (0 for the first), and by how much an
    engine's may differ from them in the mean, both in nats.

    One forward pass of `ROWS` + 1 rows; under ZeRO-3 every rank takes part.
    """
    tokens = torch.tensor(canary, device=device)
    with disturbed(model.get_input_embeddings()):  # type: ignore[operator]
        logits = model(input_ids=tokens.repeat(ROWS + 1, 1), use_cache=False).logits
    logprobs, tolerance = judge(logits, tokens, torch.finfo(next(model.parameters()).dtype).eps)
    return logprobs.tolist(), tolerance


@contextmanager
def disturbed(embeddings: nn.Module) -> Iterator[None]:
    """Move the embeddings of every row of a batch but the first, at random by up to one unit in the last place."""

    def disturb(module: nn.Module, arguments: Any, out: Tensor) -> Tensor:
        noise = torch.rand(out.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        noise[0] = 0
        return out + out * (torch.finfo(out.dtype).eps * noise).to(out)

    hook = embeddings.register_forward_hook(disturb)
    try:
        yield
    finally:
        hook.remove()


def judge(logits: Tensor, tokens: Tensor, eps: float) -> tuple[Tensor, float]:
    """Log-probabilities [T] and tolerance by `logits` [1 + R, T, V] of `tokens` [T]; `eps`: of the type of the weights.

    `noise` is what the disturbance of the rows 1 to R does to the log-probabilities. Where all contexts end in much the same
    hidden state it lacks the rounding of the logits themselves, which is in proportion to their spread over the vocabulary.
    """
    logp = torch.log_softmax(logits[:, :-1].float(), -1)
    spread = logp[0].std(-1).mean()
    own = logp.gather(2, tokens[1:].expand(len(logp), -1)[..., None])[..., 0]
    noise = (own[1:] - own[0]).abs().mean()
    return torch.nn.functional.pad(own[0], (1, 0)), max(FLOOR, FACTOR * float(noise + eps * spread / 4))
