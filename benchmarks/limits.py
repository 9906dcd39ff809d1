"""What a device allows: floating-point operations of training, and bytes of decoding. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

SHEET = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "B200": 2250e12,
}  # bfloat16, dense


class Model(NamedTuple):
    """A dense transformer."""

    parameters: int
    layers: int
    kv_heads: int
    head: int  # size of each
    bytes: int  # of a number


def model_of(about: Mapping[str, Any], size: int, width: int) -> Model:
    """`about`: its config.json. `size`: bytes of its weights, of `width` each."""
    head = about.get("head_dim") or about["hidden_size"] // about["num_attention_heads"]
    return Model(size // width, about["num_hidden_layers"], about["num_key_value_heads"], head, width)


def peak(device: str, measured: float) -> float:
    """FLOP/s in bfloat16, by the data sheet; those that were measured where none is known."""
    return next((flops for name, flops in SHEET.items() if name in device), measured)


def mfu(model: Model, tokens: float, seconds: float, flops: float) -> float:
    """Model FLOPs utilisation of training on `tokens`, prompts included: 6 a parameter and token (PaLM, 2204.02311,
    appendix B, without what attention adds), whatever is worked out twice."""
    return 6 * model.parameters * tokens / (seconds * flops)


def decoding(model: Model, sequences: float, prompt: float, answer: float, bandwidth: float) -> float:
    """Seconds that memory of `bandwidth` bytes a second needs to decode `answer` tokens after `prompt`, in so many equal
    sequences at a time: each step reads every weight once, and the cache of all tokens that there are by then."""
    cached = 2 * model.bytes * model.layers * model.kv_heads * model.head  # bytes a token
    read = answer * model.parameters * model.bytes + sequences * cached * (prompt * answer + answer**2 / 2)
    return read / bandwidth
