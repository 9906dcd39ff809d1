"""A model's directory: found as the recipe names it, or made from a config, so that small models need no download."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlreason.errors import RecipeError, short
from rlreason.signals import die_with
from rlreason.types import Task

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")  # weights that run whatever they say when they are read
ENDS = (  # where a model names the token that ends an answer
    ("tokenizer_config.json", "eos_token"),
    ("generation_config.json", "eos_token_id"),
    ("config.json", "eos_token_id"),
    ("special_tokens_map.json", "eos_token"),
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def directory(model: Any, out: Path) -> str:
    """What vLLM and transformers load: the recipe's name or directory, or `out/model`, made here.

    A made directory holds a config and a tokenizer; the learner draws the weights from the recipe's seed.
    """
    if isinstance(model, str):
        path = Path(model)
        if path.is_dir() and not (path / "config.json").is_file():
            raise RecipeError([f"model: {model} is a directory without config.json, so no Hugging Face model"])
        if problem := pickled(path):
            raise RecipeError([f"model: {problem}"])
        if not path.exists():
            if model.startswith((".", "/", "~")) or model.count("/") != 1:
                raise RecipeError([f"model: {model} is no directory here, and no name of the form owner/model"])
            _reach(model)
        return model
    return make(model, out / "model")


def pickled(folder: Path) -> str:
    """Why the weights in `folder` are not read: they are there, but only as pickles. "" if that is not so."""
    found = sorted(file.name for kind in PICKLES for file in folder.glob(kind) if file.name != "training_args.bin")
    if not found or any(folder.glob("*.safetensors")):
        return ""
    code = f'from transformers import AutoModelForCausalLM as M; M.from_pretrained("{folder}").save_pretrained("NEW")'
    return (
        f"the weights in {folder} are pickles ({found[0]}), and reading one can run anything; convert them to safetensors "
        f"where it may: python -c '{code}', and copy the tokenizer's files to NEW"
    )


def make(model: dict[str, Any], target: Path) -> str:
    """Write the config and the tokenizer of a model that is made. Raises `RecipeError`."""
    target.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(target, str(model.get("characters", "0123456789+-*/=() ")))
    if (rows := model["from_config"].get("vocab_size", vocabulary)) < vocabulary:
        raise RecipeError([f"model.from_config.vocab_size: {rows} is below the {vocabulary} tokens of its characters"])
    config = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    config |= {"tie_word_embeddings": True} | model["from_config"]
    (target / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=1))
    return str(target)


def draw(folder: str, seed: int) -> None:
    """Draw the weights of a model that was made, so that its directory is whole."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    about = AutoConfig.from_pretrained(folder, trust_remote_code=False)  # it is of our own making
    AutoModelForCausalLM.from_config(about, dtype=torch.float32, trust_remote_code=False).save_pretrained(folder)


def local(name: str, out: Path) -> str:
    """The directory of a model that exists, fetched from the hub if need be."""
    path = directory(name, out)
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download

    return str(snapshot_download(path, ignore_patterns=[*PICKLES]))


def _reach(name: str) -> None:
    """Fetch a hub model's config, so that a wrong name, a gated model or no network is told before anything starts."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    why: Exception
    try:
        hf_hub_download(name, "config.json")
        return
    except GatedRepoError as error:
        why, advice = error, "accept its terms on its page there, and hand over your token (HF_TOKEN, or HF_TOKEN_PATH)"
    except LocalEntryNotFoundError as error:
        why, advice = error, "fetch it where there is a network, and name its directory; from a cache: HF_HUB_OFFLINE=1"
    except (HfHubHTTPError, OSError, ValueError) as error:
        why, advice = error, "is the name right, and are you logged in if it is a private one?"
    raise RecipeError([f"model: {name} is no directory here, and not to be had from the hub: {short(why)}\n    {advice}"])


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
    if not _said(folder / "tokenizer_config.json").get("chat_template") and not any(folder.glob("chat_template*")):
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
    about = _said(folder / "tokenizer.json")
    if "model" not in about:
        return None
    return about["model"].get("vocab"), [(t["id"], t["content"]) for t in about.get("added_tokens", [])]


def unfit(model: Any, width: int, stopped: bool) -> Iterator[tuple[str, str]]:
    """(option, problem) for what cannot work with a model that is made or a directory here; of another nothing is known yet.

    `width`: the GPUs of an engine, among which its heads are shared out. `stopped`: something beside the
    end-of-sequence token ends an answer, or there are none.
    """
    folder = Path(model) if isinstance(model, str) else None
    try:
        about = _said(folder / "config.json") if folder else model["from_config"]
        if not about:
            return
        yield from _heads(about.get("text_config", about), width)
        if folder:
            yield from _weights(folder)
            yield from _tokens(folder, about.get("text_config", about).get("vocab_size", 0))
            if not stopped and not any(_said(folder / name).get(key) is not None for name, key in ENDS):
                yield (
                    "model",
                    (
                        f"{model} has no end-of-sequence token (none in {', '.join(name for name, _ in ENDS)}), "
                        "so every answer would run on to rollout.max_tokens; name it there, or say rollout.stop"
                    ),
                )
    except RecipeError as error:
        yield from (("model", problem) for problem in error.problems)


def _heads(about: dict[str, Any], width: int) -> Iterator[tuple[str, str]]:
    """Attention heads that cannot be shared out among the GPUs of an engine, as vLLM would tell it with a model loaded."""
    heads = about.get("num_attention_heads")
    keys = about.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(keys, int):
        return
    fine = [n for n in range(1, heads + 1) if heads % n == 0 and (keys % n == 0 or n % keys == 0)]
    if width not in fine:
        near = [*[n for n in fine if n < width][-1:], *[n for n in fine if n > width][:1]]
        yield (
            "rollout.vllm.tensor_parallel_size",
            (
                f"{heads} attention heads (and {keys} of keys and values) cannot be shared out among {width} GPUs: "
                f"{heads} / {width} = {heads / width:.3g}; say {' or '.join(map(str, near))}"
            ),
        )


def _weights(folder: Path) -> Iterator[tuple[str, str]]:
    """Weights that are not there, as after a download that was cut off; pickles are told by `directory`."""
    if not any(folder.glob("*.safetensors")) and not pickled(folder):
        yield "model", f"{folder} holds no weights (*.safetensors)"
    parts = sorted(set(_said(folder / "model.safetensors.index.json").get("weight_map", {}).values()))
    if lost := [name for name in parts if not (folder / name).is_file()]:
        yield "model", f"{folder} is not whole: {len(lost)} of its {len(parts)} files of weights are not there ({lost[0]})"


def _tokens(folder: Path, rows: int) -> Iterator[tuple[str, str]]:
    """Tokens that the embedding, of so many rows, has no row for: an engine would read beyond its end.

    An added token that no text of ours comes to hold does no harm, and some models have one (Gemma's for an image).
    """
    known, added = _vocabulary(folder) or (None, [])
    if not known or not rows:
        return
    about = _said(folder / "tokenizer_config.json")
    template = " ".join([str(about.get("chat_template")), *(file.read_text() for file in folder.glob("*.jinja"))])
    ours = [token["content"] if isinstance(token, dict) else token for token in map(about.get, ("bos_token", "eos_token"))]
    numbers = [*(known.values() if isinstance(known, dict) else range(len(known)))]
    numbers += [number for number, text in added if text in ours or text in template]
    if (last := max(numbers)) >= rows:
        yield (
            "model",
            (
                f"its tokenizer has a token number {last}, and its embedding has {rows} rows, 0 to {rows - 1} (vocab_size in "
                "config.json): take the tokenizer that belongs to it, or resize the embedding (resize_token_embeddings)"
            ),
        )


def _said(file: Path) -> dict[str, Any]:
    """What a JSON file of a model says; nothing where it is not there. Raises `RecipeError`."""
    if not file.is_file():
        return {}
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError([f"model: {file} cannot be read: {error}"]) from None
    if not isinstance(said, dict):
        raise RecipeError([f"model: {file} is not a JSON object"])
    return said


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
