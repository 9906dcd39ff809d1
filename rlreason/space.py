"""How much room a run's checkpoints and models take, by arithmetic, and whether it is there. Loads no engine."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlreason import checkpoint, manifest, model, storage
from rlreason.config import Config
from rlreason.errors import StorageError

MASTER = 12  # bytes a parameter: float32 weights, and Adam's two moments


class Room(NamedTuple):
    """Bytes: what stays when a run is over, and what it takes beside that while it writes a checkpoint."""

    kept: int
    passing: int


def check(configs: Mapping[str, Config], out: Path, base: Any = None) -> None:
    """Refuse a run, or the stages of one, whose checkpoints and models do not fit on the disk of `out`.

    `base`: the pipeline's, where it is made from a config. What a run that goes on has written already counts as there.
    A model whose size nobody knows before it is fetched counts as nothing. Raises `StorageError`.
    """
    todo = {name: config for name, config in configs.items() if (manifest.read(Path(config.out)) or {}).get("state") != "done"}
    rooms = [room(config, parameters(source(name, configs, out, base))) for name, config in todo.items()]
    needed = sum(one.kept for one in rooms) + max((one.passing for one in rooms), default=0)
    there = sum(size(Path(config.out) / name) for config in todo.values() for name in ("checkpoints", "weights", "model"))
    free = shutil.disk_usage(next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())).free
    if needed - there > free:
        raise StorageError(
            f"out: {out}: {needed:,} bytes are needed there ({told(needed)}: checkpoints of weights and optimizer, and models"
            f"{f'; {told(there)} of it is there already' * bool(there)}), and {free:,} are free ({told(free)})\n"
            "    make room, say another out=…, or keep fewer checkpoints (loop.keep)"
        )


def another(out: Path) -> None:
    """Refuse to begin a checkpoint that will not fit, by the size of the newest: a rank that runs out of room midway would
    leave the others waiting, and fill the disk with what is no checkpoint. Raises `StorageError`."""
    if not (there := checkpoint.committed(out / "checkpoints")):
        return
    with storage.stored(out):
        needed = size(there[0]) + size(out / "weights" / there[0].name)
        free = shutil.disk_usage(out).free
    if needed > free:
        full = storage.ADVICE[errno.ENOSPC]
        raise StorageError(f"{out}: {needed:,} bytes are needed for a checkpoint, and {free:,} are free: {full}")


def room(config: Config, parameters: int) -> Room:
    """What a stage of a model of so many parameters writes, in bytes.

    A checkpoint has 12 bytes a parameter on the CPU: weights in float32 and Adam's two moments, and under ZeRO the weights
    a second time. On a GPU it has 14, for bfloat16 beside them. A model has 4 bytes a parameter on the CPU and 2 on a GPU.
    There are `loop.keep` of both, if so many are ever made, and the best model; one more of both while the newest is
    written and no older one is deleted yet; and in weights/live a model where weights travel as a file, or three
    where they travel as what has changed: a whole one, as much of changes, and the whole one that follows.
    """
    gpu = config.device == "cuda"
    weights = parameters * (2 if gpu else 4)
    if config.kind == "export":
        return Room(weights, 0)
    if config.kind != "train":
        return Room(0, 0)
    sharded = bool((config.learner.deepspeed.get("zero_optimization") or {}).get("stage"))
    moving = config.algorithm.compares and config.algorithm.reference_every
    checkpoint = parameters * MASTER + weights * ((gpu or sharded) + bool(moving))
    made = math.ceil(config.loop.steps / config.loop.save_every) if config.loop.save_every else 1
    kept = min(made, config.loop.keep)
    models = kept + bool(config.eval.every) + {"file": 1, "delta": 3}.get(config.transport, 0)
    return Room(kept * checkpoint + models * weights, (checkpoint + weights) * (made > kept))


def source(name: str, configs: Mapping[str, Config], out: Path, base: Any) -> Any:
    """The model that the weights of a stage come from, through the stages before it."""
    found = configs[name].model
    while isinstance(found, str) and Path(found).is_relative_to(out) and not Path(found).exists():
        stage = Path(found).relative_to(out).parts[0]
        if stage not in configs:
            return base
        found = configs[stage].model
    return found


def parameters(source: Any) -> int:
    """How many parameters a model has: by the headers of its safetensors, or by the sizes in its config. 0 if it is on
    a hub, or has neither."""
    if source is None:
        return 0
    if not isinstance(source, str):
        sizes = source["from_config"]
        vocabulary = len(set(source.get("characters", ""))) + len(model.TAGS) + 2
        return by_config({"vocab_size": vocabulary, "tie_word_embeddings": True} | sizes)  # as `model.make` has them
    folder = Path(source)
    files = [*folder.glob("*.safetensors")] if folder.is_dir() else []
    if files:
        return sum(map(_stored, files))
    about = folder / "config.json"
    return by_config(json.loads(about.read_text(encoding="utf-8"))) if about.is_file() else 0


def _stored(file: Path) -> int:
    """The numbers in a safetensors file, by its header."""
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > file.stat().st_size:
            raise StorageError(f"{file} is shorter than its header says")
        header = json.loads(f.read(length))
    return sum(math.prod(about["shape"]) for name, about in header.items() if name != "__metadata__")


def by_config(about: Mapping[str, Any]) -> int:
    """The parameters of a decoder, by its config: embeddings, and per layer attention, a gated feed-forward network or
    its experts, and norms. Within a few percent; 0 if the config does not say how large it is."""
    about = {**about, **about.get("text_config", {})}

    def said(*names: str, otherwise: int = 0) -> int:
        return int(next((about[name] for name in names if about.get(name) is not None), otherwise))

    width, layers = said("hidden_size", "n_embd", "d_model"), said("num_hidden_layers", "n_layer", "num_layers")
    heads = said("num_attention_heads", "n_head", otherwise=1)
    head = said("head_dim", otherwise=width // heads)
    attention = 2 * width * head * (heads + said("num_key_value_heads", otherwise=heads))
    inner = said("intermediate_size", "n_inner", "ffn_dim", otherwise=4 * width)
    experts = said("num_experts", "num_local_experts", "n_routed_experts")
    forward = 3 * width * inner
    if experts:
        forward = experts * (3 * width * said("moe_intermediate_size", otherwise=inner) + width)
    embeddings = said("vocab_size") * width * (1 if about.get("tie_word_embeddings") else 2)
    return embeddings + layers * (attention + forward + 2 * width) + width


def size(folder: Path) -> int:
    """The bytes of all files of a folder; links are not followed."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def told(count: int) -> str:
    """Bytes, for people."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.1f} {unit}"
