"""A model's directory: found as the recipe names it, or made from a config, so that small models need no download."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlreason.errors import RecipeError
from rlreason.signals import die_with
from rlreason.types import Task

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def directory(model: Any, out: Path) -> str:
    """What vLLM and transformers load: the recipe's name or directory, or `out/model`, made here.

    A made directory holds a config and a tokenizer; the learner draws the weights from the recipe's seed.
    """
    if isinstance(model, str):
        path = Path(model)
        if path.is_dir() and not (path / "config.json").is_file():
            raise RecipeError([f"model: {model} is a directory without config.json, so no Hugging Face model"])
        if not path.exists():
            if model.startswith((".", "/", "~")) or model.count("/") != 1:
                raise RecipeError([f"model: {model} is no directory here, and no name of the form owner/model"])
            _reach(model)
        return model
    return make(model, out / "model")


def make(model: dict[str, Any], target: Path) -> str:
    """Write the config and the tokenizer of a model that is made."""
    target.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(target, str(model.get("characters", "0123456789+-*/=() ")))
    config = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    config |= {"tie_word_embeddings": True} | model["from_config"]
    (target / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=1))
    return str(target)


def draw(folder: str, seed: int) -> None:
    """Draw the weights of a model that was made, so that its directory is whole."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).save_pretrained(folder)


def local(name: str, out: Path) -> str:
    """The directory of a model that exists, fetched from the hub if need be."""
    path = directory(name, out)
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download

    return str(snapshot_download(path))


def _reach(name: str) -> None:
    """Fetch a hub model's config, so that a wrong name, a gated model or no network is told before anything starts."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(name, "config.json")
    except (HfHubHTTPError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise RecipeError([f"model: {name} is no directory here, and not to be had from the hub: {why}"]) from None


def check_chat(model: Any, tasks: Iterable[Task]) -> None:
    """Refuse chat messages where the model, if it is a directory here or made, has no chat template."""
    if not any(isinstance(task.prompt, list) for task in tasks):
        return
    if is_made(model):
        raise RecipeError(["model: the tasks are chat messages, and a model that is made has no chat template; "
                           "say tasks.chat_template"])  # fmt: skip
    folder = Path(model)
    if not folder.is_dir():
        return
    settings = folder / "tokenizer_config.json"
    inside = settings.is_file() and json.loads(settings.read_text()).get("chat_template")
    if not inside and not any(folder.glob("chat_template*")):
        raise RecipeError([f"model: the tasks are chat messages, but the tokenizer in {model} has no chat template; "
                           "say tasks.chat_template"])  # fmt: skip


def strange(name: str, model: Any, out: Path) -> list[str]:
    """Why a policy of `model` cannot be compared with `name`, token by token: it is not there, or reads other tokens."""
    try:
        directory(name, out)
        own = directory(model, out)
    except RecipeError as error:
        return error.problems
    vocabularies = [tokens for path in (name, own) if (tokens := _vocabulary(Path(path))) is not None]
    if len(vocabularies) == 2 and vocabularies[0] != vocabularies[1]:
        return [f"{name} has another tokenizer than the model, so their tokens cannot be compared"]
    return []


def _vocabulary(folder: Path) -> Any:
    """The tokens of a model that is a directory here, with their numbers; None where it has no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    about = json.loads(file.read_text(encoding="utf-8"))
    return about["model"].get("vocab"), [(t["id"], t["content"]) for t in about.get("added_tokens", [])]


def is_made(model: Any) -> bool:
    """Are the weights to be drawn at random, rather than read?"""
    return not isinstance(model, str)


def write_tokenizer(target: Path, characters: str) -> int:
    """A tokenizer with one token per character, and one for each of the think and answer tags. Returns its size.

    It is a byte-level BPE without merges, for that is how transformers loads every tokenizer of a Qwen2-type model
    whatever the files say: a plain character vocabulary would lose spaces and newlines without a word.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = sorted({piece for c in characters for piece in level.pre_tokenize_str(c)[0][0]})
    names = ["<|end|>", "<|pad|>", *letters]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names[:2])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "add_prefix_space": False,
        "model_max_length": 1 << 20,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return int(tokenizer.get_vocab_size())


if __name__ == "__main__" and die_with(int(sys.argv[3])):  # a process of its own: who describes a run need not load torch
    draw(sys.argv[1], int(sys.argv[2]))
