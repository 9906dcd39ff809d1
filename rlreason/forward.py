"""What a model says of tokens: log-probabilities and entropies, whether or not samples share a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlreason.head import Head
from rlreason.packing import layout, pack

Model = Callable[
    [Tensor, Tensor | None], Tensor
]  # logits [M, L, V] of tokens [M, L], and of positions where samples share rows
PROBE = 16  # tokens of each of the random samples with which it is tried whether a model can be packed
PACKABLE = {"full_attention", "sliding_attention"}  # kinds of layers that go by positions alone


class Read(NamedTuple):
    logp: Tensor  # float32 [N, T], log-probability of each token given those before it; 0 for the first
    entropy: Tensor | None  # float32 [N, T], nats, of the distribution each token was drawn from; None: not asked for
    area: int  # tokens that were put through the model, padding included


def logits(model: Any, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
    """Logits [M, L, V] of tokens [M, L]; `positions` [M, L] where samples share a row: they start at 0 in each sample.

    Without an attention mask and a cache, transformers takes a position that does not follow the one before for the
    start of another sequence, and lets none look into another (masking_utils.find_packed_sequence_indices).
    """
    packed = {} if positions is None else {"position_ids": positions}
    found: Tensor = model(input_ids=tokens, use_cache=False, **packed).logits
    return found


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token given those before it; 0 for the first. [N, T, V], [N, T] -> [N, T], float32."""
    scaled = logits[:, :-1].float() / temperature
    logp = -torch.nn.functional.cross_entropy(scaled.transpose(1, 2), tokens[:, 1:], reduction="none")
    return torch.nn.functional.pad(logp, (1, 0))


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy, in nats, of the distribution each token was drawn from; 0 for the first. [N, T, V] -> [N, T], float32."""
    logp = torch.log_softmax(logits[:, :-1].float() / temperature, -1)
    return torch.nn.functional.pad(-(logp.exp() * logp).sum(-1), (1, 0))


def read(
    model: Model, tokens: Tensor, lengths: list[int], temperature: float, hidden: int | None = None, entropy: bool = False,
    head: Head | None = None,
) -> Read:  # fmt: skip
    """What `model` says of the tokens [N, T] of samples of `lengths`.

    `hidden`, the model's hidden size: they share rows, packed as is best for it. None: each has its own, which costs
    no attention mask, for it is padded on the right and attention is causal. `head`: the model's own, where no logits
    are to be kept.
    """
    rows = pack(lengths, hidden) if hidden else [[i] for i in range(len(lengths))]
    if len(rows) == len(lengths):
        logp, spread = _told(model, tokens, None, temperature, entropy, head)
        return Read(logp, spread, tokens.numel())
    positions, cells = (torch.from_numpy(part).to(tokens.device) for part in layout(rows, lengths))
    nowhere = positions.numel()  # a cell behind the last, for padding
    packed = tokens.new_zeros(nowhere + 1).scatter(0, cells.flatten(), tokens.flatten())[:-1].view_as(positions)
    logp, spread = _told(model, packed, positions, temperature, entropy, head)

    def unpacked(values: Tensor) -> Tensor:
        known = values.masked_fill(positions == 0, 0.0)  # the first of a sample stands after another sample's last
        return torch.nn.functional.pad(known.flatten(), (0, 1))[cells]

    return Read(unpacked(logp), None if spread is None else unpacked(spread), nowhere)


def _told(
    model: Model, tokens: Tensor, positions: Tensor | None, temperature: float, entropy: bool, head: Head | None
) -> tuple[Tensor, Tensor | None]:
    """Log-probability, and entropy if asked for, of every token [M, L] but the first of a row; 0 for that."""
    if head is None:
        found = model(tokens, positions)
        return token_logprobs(found, tokens, temperature), token_entropy(found, temperature) if entropy else None
    with head.asking(tokens, temperature):
        both = torch.nn.functional.pad(model(tokens, positions)[:, :-1], (0, 0, 1, 0))
    return both[..., 0], both[..., 1] if entropy else None


def readable(model: Model, head: Head, vocabulary: int, tolerance: float, device: torch.device) -> bool:
    """Is what `head` says what the model's logits say? Not where a model scales or caps them after its last layer."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, PROBE), generator=generator).to(device)
    with torch.no_grad():
        logp, _ = _told(model, tokens, None, 1.0, False, head)
        there = token_logprobs(model(tokens, None), tokens)
    return not (logp - there).abs().max() > tolerance


def packable(model: Model, about: Any, tolerance: float, device: torch.device) -> bool:
    """Does a sample in a packed row get the log-probabilities that it has alone, and the same whoever stands before it?

    `about` is the model's config. The second question is the sharper: nothing but the neighbour changes, so answers
    within a tenth of `tolerance` are asked for, and a model of random weights, which hardly looks around, is told
    too. Recurrent layers and convolutions look at neighbours less still, and chunks only in long rows, so models that
    say they have them are told by that.
    """
    about = about.get_text_config()
    if {*(getattr(about, "layer_types", None) or ())} - PACKABLE:
        return False
    generator = torch.Generator().manual_seed(0)  # all ranks ask the same: under ZeRO-3 a forward pass is a collective
    own, first, other = torch.randint(about.vocab_size, (3, PROBE), generator=generator).to(device)

    def after(*neighbour: Tensor) -> Tensor:
        row = torch.cat([*neighbour, own])[None]
        positions = torch.arange(PROBE, device=device).repeat(1, 2) if neighbour else None
        return token_logprobs(model(row, positions), row)[0, 1 - PROBE :]

    with torch.no_grad():
        alone, one, two = after(), after(first), after(other)
    return not ((one - alone).abs().max() > tolerance or (one - two).abs().max() > tolerance / 10)
