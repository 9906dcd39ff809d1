"""The models of a learner: the one that learns, the one that it is compared with, and how their last layers are read."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlreason.config import LearnerConfig
from rlreason.gemm import speed_up
from rlreason.head import Head

Options = dict[str, Any]  # of transformers' loading functions: dtype, attn_implementation


def without_dropout(config: Any) -> Any:
    """A model's config with every dropout at 0: the engines sample without it, and a ratio of two policies has no noise."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def policy_of(model: str, made: bool, trust: bool, options: Options) -> Any:
    """The model that learns; `made`: with weights drawn from torch's seed. `trust`: its own code may run."""
    about = without_dropout(AutoConfig.from_pretrained(model, trust_remote_code=trust))
    if made:
        return speed_up(AutoModelForCausalLM.from_config(about, trust_remote_code=trust, **options))
    options = options | {"config": about}
    return speed_up(AutoModelForCausalLM.from_pretrained(model, use_safetensors=True, trust_remote_code=trust, **options))


def reference_of(policy: Any, tokenizer: Any, name: str, trust: bool, options: Options) -> Any:
    """The model that `policy` is compared with: its own first weights, or the one that the recipe names."""
    if not name:
        return copy.deepcopy(policy)
    theirs = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"algorithm.reference: {name} has another tokenizer than the model, so their tokens cannot be compared"
        )
    return speed_up(AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=trust, **options))


def head_of(model: Any, config: LearnerConfig) -> Head | None:
    """Where a micro-batch's logits would take more than `learner.logits`, or are to be worked out in float32."""
    if model is None:
        return None
    most, layer = config.logits * 2**30, model.get_output_embeddings()
    if config.tokens * layer.weight.shape[0] * 4 <= most and not config.float32_head:
        return None
    return Head(model, most, config.float32_head)
