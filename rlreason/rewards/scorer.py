"""What does a reward model think of the answer? One from Hugging Face, read into each process that judges, on its CPU."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlreason.endpoint import readable as encodable
from rlreason.model import pickled
from rlreason.rewards.judge import said, summary
from rlreason.types import Prompt, Task


def scorer(
    task: Task,
    text: str,
    *,
    model: str,
    part: Literal["all", "answer"] = "all",
    squash: Literal["sigmoid", "none"] = "sigmoid",
    max_tokens: int = 8192,
    trust_remote_code: bool = False,
    timeout: float = 120.0,  # for the pool, which sees to it
) -> float:
    """The score that a reward model gives the answer: 1 / (1 + exp(-score)), or with `squash: none` the score itself.

    `model` is a directory, or a name on the Hugging Face hub, of a sequence classifier with one output. It reads the
    prompt and the response as a conversation, through its tokenizer's chat template; where that has none, as one text.
    `part` is the response: `all`, or `answer`, what follows </think> (DeepSeek-R1 scores helpfulness on the summary and
    safety on the whole, 2501.12948). With the sigmoid, an empty one is 0, and the model is not asked.

    At most `max_tokens` tokens are read, and no more than the model has positions for: of more, the first are left out,
    which are the prompt's (but for the beginning-of-sequence token). 8,192 is what DeepSeek-R1's reward models read.
    `timeout` is in seconds for one answer; the first waits until the model is read. With `trust_remote_code`, the Python
    files that come with the model are run; the recipe's option of that name is about the policy, and says nothing here.

    The same answer always has the same score: in float32, without dropout, one answer at a time, on one thread.
    Raises `ValueError` where the model is none that can score, or cannot read the answer.
    """
    if part not in ("all", "answer") or squash not in ("sigmoid", "none") or max_tokens < 1:
        raise ValueError(f"part: {part}, squash: {squash}, max_tokens: {max_tokens}, but part is all or answer, squash is "
                         "sigmoid or none, and max_tokens is at least 1")  # fmt: skip
    response = encodable(summary(text) if part == "answer" else text)
    if squash == "sigmoid" and not response.strip():
        return 0.0
    reader = _reader(model, trust_remote_code)
    if reader.problem:
        raise ValueError(reader.problem)
    score = _score(reader, _tokens(reader, task.prompt, response, max_tokens))
    return score if squash == "none" else _sigmoid(score)


class Reader(NamedTuple):
    tokenizer: Any
    network: Any
    positions: float  # tokens that it can read at most
    problem: str  # why it cannot score; "" if it can


@cache
def _reader(model: str, trust: bool = False) -> Reader:
    """The model, read once for a process; and so is what is wrong with it, which each answer would find anew."""
    path = Path(model).expanduser()
    if not path.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        return _unfit(f"{model} is no directory here, and no name of the form owner/model")
    if path.is_dir() and not (path / "config.json").is_file():
        return _unfit(f"{model} is a directory without config.json, so no Hugging Face model")
    if problem := pickled(path):
        return _unfit(problem)
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        # As many cores as there are judging processes are at work already; and how many threads share out a sum decides
        # in which order it is added up, so that elsewhere the score of the same answer would differ in its last digits.
        torch.set_num_threads(1)
        name = str(path) if path.is_dir() else model
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
        network, found = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, use_safetensors=True, trust_remote_code=trust
        )
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:  # each of them where memory runs out, too
        why = " ".join(str(error).split())[:300]
        hint = "; rewards.memory (GiB) may be too little for it" if isinstance(error, MemoryError) or "memory" in why else ""
        return _unfit(f"{model} cannot be read: {why}{hint}")
    if missing := sorted(found["missing_keys"]):  # transformers draws them at random, and only warns
        return _unfit(f"{model} has no weights for {', '.join(missing[:3])}: it was not trained to score, as a generative "
                      "model is not; name a reward model")  # fmt: skip
    if network.config.num_labels != 1:
        return _unfit(f"{model} has {network.config.num_labels} outputs, and a reward model has one")
    positions = getattr(network.config.get_text_config(), "max_position_embeddings", None) or math.inf
    return Reader(tokenizer, network.eval(), min(positions, tokenizer.model_max_length), "")


def _unfit(problem: str) -> Reader:
    return Reader(None, None, 0, f"model: {problem}")


def _tokens(reader: Reader, prompt: Prompt, response: str, longest: int) -> list[int]:
    """Token ids of the conversation; of more than `longest` the last ones, which hold the response."""
    tokenizer = reader.tokenizer
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = [*asked, {"role": "assistant", "content": response}]
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        if "".join(response.split()) not in "".join(text.split()):
            raise ValueError("the reward model's chat template leaves out a part of the response, as some do with what stands "
                             "before </think>; say part: answer")  # fmt: skip
    else:
        text = prompt + response if isinstance(prompt, str) else said(messages)
    ids: list[int] = tokenizer(encodable(text), add_special_tokens=not tokenizer.chat_template).input_ids
    if not ids:
        raise ValueError(f"the reward model's tokenizer knows no character of {text[:80]!r}")
    most = int(min(longest, reader.positions))
    first = [i for i in ids[:1] if i == tokenizer.bos_token_id] if len(ids) > most > 1 else []
    return first + ids[-(most - len(first)) :]


def _score(reader: Reader, ids: list[int]) -> float:
    import torch

    with torch.inference_mode():
        return reader.network(input_ids=torch.tensor([ids])).logits.item()


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))  # neither overflows
