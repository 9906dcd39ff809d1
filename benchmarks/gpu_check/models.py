"""Models of the shapes that people train, with random weights, made here: nothing is downloaded.

    python models.py SHAPE LAYERS DEVICE FOLDER

The vocabulary is as large as the real one, and every token of it is a text of its own, so that rewards differ between answers.
"""

from __future__ import annotations

import itertools
import json
import string
import sys
from pathlib import Path
from typing import Any

from rlreason.model import directory

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
ROWS = 151_936  # of Qwen's embedding
TOKENS = 151_665  # of its tokenizer; the rows beyond are never decoded to a text
STATE = 20  # bytes a parameter of a learner in bfloat16: weights 2, gradients 2 + 4, float32 master 4, Adam 8

QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": ROWS, "tie_word_embeddings": True,
         "max_position_embeddings": 4096, "rope_theta": 1e6, "rms_norm_eps": 1e-6}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": QWEN2 | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                             "num_attention_heads": 12, "num_key_value_heads": 2},
    "qwen2.5-0.5b": QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                             "num_attention_heads": 14, "num_key_value_heads": 2},
    "qwen3-0.6b": QWEN2 | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024,
                           "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
                           "num_key_value_heads": 8, "head_dim": 128},
    "short": QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 6,
                      "num_attention_heads": 14, "num_key_value_heads": 2},
}  # fmt: skip
TINY = {  # what replaces a shape on a CPU; vLLM takes heads of 32 there
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 128,
}  # fmt: skip


def parameters(shape: dict[str, Any], layers: int) -> int:
    """Of a model with tied embeddings; norms and biases are left out."""
    hidden = shape["hidden_size"]
    head = shape.get("head_dim", hidden // shape["num_attention_heads"])
    attention = 2 * hidden * head * (shape["num_attention_heads"] + shape["num_key_value_heads"])
    return shape["vocab_size"] * hidden + layers * (attention + 3 * hidden * shape["intermediate_size"])


def fitting(shape: dict[str, Any], room: float) -> int:
    """How many of its layers a learner has `room` bytes for, 1 at least."""
    layers = int(shape["num_hidden_layers"])
    while layers > 1 and STATE * parameters(shape, layers) > room:
        layers -= 1
    return layers


def widen(tokenizer: Path, tokens: int) -> None:
    """Give a tokenizer `tokens` tokens: pieces of three letters, which decode to themselves. Text is encoded as before."""
    about = json.loads(tokenizer.read_text())
    known = about["model"]["vocab"]
    first = 1 + max([*known.values(), *(token["id"] for token in about["added_tokens"])])
    pieces = map("".join, itertools.product(string.ascii_letters + ".,", repeat=3))
    known |= {piece: i for i, piece in zip(range(first, tokens), pieces, strict=False)}
    tokenizer.write_text(json.dumps(about))


def make(shape: dict[str, Any], layers: int, device: str, folder: Path) -> Path:
    """Write a whole Hugging Face directory, `folder/model`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    about = shape | {"num_hidden_layers": layers}
    if device == "cpu":
        about = {key: value for key, value in about.items() if key != "vocab_size"} | TINY
    made = Path(directory({"from_config": about, "characters": CHARACTERS}, folder))
    if device != "cpu":
        widen(made / "tokenizer.json", TOKENS)
    torch.manual_seed(0)
    with torch.device(device):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(made), dtype=dtype)
    model.save_pretrained(made)
    return made


if __name__ == "__main__":
    make(SHAPES[sys.argv[1]], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
