"""A model to hand on: a Hugging Face directory that was seen to reload as what it was, and its card.

The work is a process of its own, `python -m rlreason.export SOURCE TARGET`, so that the driver loads no torch.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlreason import manifest
from rlreason import model as models
from rlreason.card import card
from rlreason.config import Config
from rlreason.display import Display, duration
from rlreason.errors import Failure, Interrupted, RecipeError, ResourceError, StorageError
from rlreason.lineage import maker
from rlreason.signals import die_with, stopping
from rlreason.tasks.prompts import chat_template

SAID = "rlreason: "  # begins the lines of its log that are told to people
TYPES = {name: ours for ours, name in manifest.NAMES.items()}  # safetensors' dtype -> torch's
ROWS, LENGTH = 4, 32  # sequences of tokens that logits are compared on, and how long they are at most
WORDS = [
    "".join(map(chr, range(32, 127))), "  two  spaces\n\n\ttab\r\n", "naïve Übermaß, λόγος, слово, 字, かな, 한글, שלום, مرحبا",
    "<think>\n1 + 1 = 2\n</think>\n<answer>2</answer>", "∀x ∈ ℝ: x² ≥ 0 \\frac{1}{2} 1,000.50 🙂",
]  # fmt: skip


async def run(config: Config, name: str, tasks: Any, began: float) -> dict[str, Any]:
    """Export `config.model` to `config.out`/model, whole or not at all; returns the summary.

    Raises `RecipeError` where the model, its chat template or the scores are not what an export can be made of.
    """
    begin, out = time.time(), Path(config.out)
    target, partial = out / "model", out / "model.partial"
    scores = Path(config.export.scores) if config.export.scores else None
    with Display(name, 0) as display, stopping() as stop:
        source = models.local(config.model, out)
        template = _template(config)
        score = _check(scores, source) if scores else None
        display.say(f"exporting {config.model} …")
        shutil.rmtree(partial, ignore_errors=True)
        if target.exists():
            os.replace(target, partial)  # so that there is never half a model under its name
            shutil.rmtree(partial)
        about = await _child(source, partial, template, config.trust_remote_code, out / "logs" / "export.log", stop)
        (partial / "README.md").write_text(card(config.model, partial, about, scores), encoding="utf-8")
        os.replace(partial, target)
        summary = {
            "accuracy_before": None, "accuracy_after": score, "policy_gap_max": None, "seconds_to_first_step": None,
            "seconds": round(time.time() - begin, 3), "steps": 0, "tokens": 0, "peak_rss_bytes": about["peak_rss_bytes"],
            "model": str(target), "told": f"{target}: {about['parameters']:,} parameters, which reload to the same logits",
        }  # fmt: skip
        display.say(f"{summary['told']}; {duration(summary['seconds'])}")
    return summary


def _check(scores: Path, source: str) -> dict[str, float] | None:
    """pass@1 of scores.json. Raises `RecipeError` if it is no such file, or tells of other weights than the model's."""
    try:
        said = json.loads(scores.read_text(encoding="utf-8"))
        first, weights = said["scores"].get("pass@1"), said["weights"]
        _ = said["domains"], said["metric"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError([f"export.scores: {scores}: not the scores.json of a stage of kind eval: {error!r}"]) from None
    held = manifest.weights_of(Path(source))
    if weights and held and weights != held:
        raise RecipeError([f"export.scores: {scores}: what was scored there are not the weights of {source} "
                           f"({weights[:12]}, not {held[:12]})"])  # fmt: skip
    return dict(first) if first else None


def _template(config: Config) -> str | None:
    """The chat template that goes with the model: the recipe's, or that of the stage that trained it; `None`: its own."""
    if config.tasks.chat_template:
        return chat_template(config.tasks.chat_template)
    folder = maker(config.model)
    made = manifest.read(folder) if folder else None
    if not made or made["kind"] != "train":
        return None
    if "{" in made["recipe"].get("tasks.chat_template", ""):
        return str(made["recipe"]["tasks.chat_template"])
    entry = made["inputs"].get("tasks.chat_template")
    if entry is None:
        return None
    if not manifest.same(entry["path"], entry):
        raise RecipeError([f"model: it was trained with the chat template {entry['path']}, which is not what it was; say "
                           "tasks.chat_template"])  # fmt: skip
    return chat_template(entry["path"])


async def _child(
    source: str, target: Path, template: str | None, trust: bool, log: Path, stop: Callable[[], bool]
) -> dict[str, Any]:  # fmt: skip
    """What the process below says of the model that it wrote. Its failure is raised as it would be here."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rlreason.export", source, str(target), str(os.getpid()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
            start_new_session=True,  # Ctrl-C is for us to answer
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )  # fmt: skip
        work = asyncio.create_task(process.communicate(json.dumps({"template": template, "trust": trust}).encode()))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=0.2)
                if stop():
                    raise Interrupted("stopped before the model was written; the same command begins that anew")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode == 0:
        return dict(json.loads(work.result()[0]))
    raise _failure(process.returncode or 0, log.read_text(encoding="utf-8", errors="replace"), f"{source}; its log is {log}")


def _failure(code: int, log: str, what: str) -> Failure:
    """How a process that ended with `code`, and these last words, is told."""
    lines = log.strip().splitlines() or ["it said nothing"]
    said = [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
    if code == RecipeError.code and said:
        return RecipeError(said)
    if code == StorageError.code and said:
        return StorageError("\n".join(said))
    if code == -signal.SIGKILL:
        return ResourceError(f"the process that exports {what}: it was killed, as happens where memory runs out")
    return Failure(
        "\n    ".join([f"the process that exports {what}: it failed ({code}), and its last words were", *lines[-5:]])
    )


# ---- the process that does the work ----


def main(source: str, target: str, parent: int = 0) -> int:
    """Write `source` to the new directory `target`; on stdin come, as JSON, its chat template or null, and
    whether the Python files that come with it may be run."""
    if parent and not die_with(parent):
        return 1
    try:
        about = convert(Path(source), Path(target), **(json.load(sys.stdin) if parent else {}))
    except Failure as failure:
        print("\n".join(f"{SAID}{line}" for line in str(failure).splitlines()), file=sys.stderr)
        return failure.code
    except OSError as error:
        print(f"{SAID}{error}", file=sys.stderr)
        return StorageError.code
    print(json.dumps(about | {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
    return 0


def convert(source: Path, target: Path, template: str | None = None, trust: bool = False) -> dict[str, Any]:
    """Load, save, load what was saved and compare; returns what the card tells of the model.

    Raises `RecipeError` if `source` is no whole model, and `StorageError` if what was written is not the same.
    """
    network, tokenizer = _read(source, trust)
    if template is not None:
        tokenizer.chat_template = template
    before = _seen(network, tokenizer)
    try:
        network.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except ValueError as error:  # of generation settings that contradict each other
        raise RecipeError([f"model: {source} cannot be saved: {_short(error)}"]) from None
    about = {
        "model_type": network.config.model_type,
        "parameters": sum(p.numel() for p in network.parameters()),
        "dtype": str(network.dtype).removeprefix("torch."),
    }
    del network
    gc.collect()  # two at a time would want twice the memory
    after = _seen(*_read(target, trust))
    if differ := [what for what in before if before[what] != after[what]]:
        raise StorageError(f"{source}, written to {target}, has not the same {', '.join(differ)} when it is loaded again")
    return about


def _read(folder: Path, trust: bool) -> tuple[Any, Any]:
    """Model and tokenizer of a directory, in the type that is stored. Raises `RecipeError` where weights are wanting."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        network, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=_dtype(folder), output_loading_info=True, use_safetensors=True, trust_remote_code=trust,
            ignore_mismatched_sizes=True,  # they are told below, by name
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        why = _short(error)
        if "custom code" in why and not trust:
            why = "it comes with Python files of its own, which run only where the recipe says trust_remote_code: true"
        raise RecipeError([f"model: {folder} cannot be read: {why}"]) from None
    problems = {
        "no weights for": sorted(found["missing_keys"]),  # which transformers would draw at random
        "weights that such a model has no use for:": sorted(found["unexpected_keys"]),
        "weights of another shape for": sorted(key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]),
    }
    if any(problems.values()):
        raise RecipeError([
            f"model: {folder} has {what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
            for what, keys in problems.items() if keys
        ])  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # out of the file's pages: sums can depend on how their terms are aligned
    return network.eval(), tokenizer


def _dtype(folder: Path) -> Any:
    """The type of the stored weights, whatever config.json says; "auto" where they are of several, or no safetensors."""
    import torch
    from safetensors import safe_open

    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return getattr(torch, TYPES[found.pop()]) if len(found) == 1 and found <= TYPES.keys() else "auto"


def _seen(network: Any, tokenizer: Any) -> dict[str, Any]:
    """What must be the same of a model that is loaded again, by name."""
    import torch

    about = network.config.get_text_config()
    length = min(LENGTH, getattr(about, "max_position_embeddings", None) or LENGTH)
    ids = torch.randint(about.vocab_size, (ROWS, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = network(input_ids=ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise RecipeError(["model: its logits are not finite numbers, so its weights are broken"])
    texts = [*WORDS, *tokenizer.batch_decode(ids, skip_special_tokens=True), *tokenizer.batch_decode(ids)]
    tokens = [tokenizer(texts, add_special_tokens=special).input_ids for special in (True, False)]
    if not any(tokens[1][:-ROWS]):  # transformers makes one up where a directory has none
        raise RecipeError(["model: its tokenizer knows no text at all, so its files are not there"])
    kept = ("transformers_version", "_name_or_path")
    return {
        "weights": [(name, _hash(p)) for name, p in network.named_parameters()],
        "configuration": {k: v for k, v in network.config.to_dict().items() if k not in kept},
        "settings of generation": {k: v for k, v in network.generation_config.to_dict().items() if k not in kept},
        "vocabulary": tokenizer.get_vocab(),
        "special tokens": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        "tokens": tokens,
        "texts": [tokenizer.batch_decode(ids) for ids in tokens],
        "chat template": tokenizer.chat_template,
        "logits": _hash(logits),
    }


def _hash(tensor: Any) -> str:
    import torch

    return hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or repr(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
