"""What a stage was made from and what it made, by hash: is it done, and is it still true? Knows no engine."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlreason import __version__, checkpoint
from rlreason.config import Config
from rlreason.errors import StorageError
from rlreason.recipe import leaves
from rlreason.tasks.mixture import rewards as mixed

FILE = "manifest.json"
OUTPUTS = {  # what a kind of stage makes, for others to take
    "train": ("weights/last", "weights/best"),
    "sample": ("samples.jsonl", "answers.jsonl", "scores.json"),
    "eval": ("scores.json", "answers.jsonl"),
    "export": ("model",),
}
FREE = ("out", "log", "eval.gate", "recovery", "chaos", "loop.keep")  # options that change nothing that a stage makes

SCALE = (  # options that say on how much of what it is made: they change no more than the last bits
    "learner.workers", "learner.tokens", "learner.gradient_checkpointing", "learner.packing", "learner.logits",
    "learner.deepspeed.zero_optimization", "rollout.workers", "rewards.workers", "transport", "share",
)  # fmt: skip

Manifest = dict[str, Any]
Entry = dict[str, Any]  # a file or folder: sha256, and seen, which tells cheaply that it was not touched


def read(out: Path) -> Manifest | None:
    """The manifest of the stage in `out`, if work was begun there."""
    path = out / FILE
    if not path.exists():
        return None
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        made = None
    whole = isinstance(made, dict) and {"state", "recipe", "inputs"} <= made.keys()
    return made if whole else {"state": "damaged", "recipe": {}, "inputs": {}}


def begun(made: Manifest | None) -> bool:
    """Is there work that a changed recipe would mix with its own? A start that failed before it had weights is none."""
    return made is not None and (made["state"] in ("done", "damaged") or "weights" in made)


def begin(config: Config, name: str, root: Path | None = None, rewards: Collection[str] = ()) -> None:
    """Write down what the stage is made from. `root`: the folder of the pipeline that it is a stage of. `rewards`: those
    that the tasks name themselves."""
    out = Path(config.out)
    before = read(out)
    kept = {key: before[key] for key in ("began", "weights") if key in before} if before and begun(before) else {}
    known = before["inputs"] if before else {}
    rewards = sorted(rewards)
    made = {
        "stage": name,
        "kind": config.kind,
        "state": "begun",
        "began": time.time(),
        "seed": config.seed,
        "code": code(),
        "rewards": rewards,
        "inputs": {key: told(path, root, known.get(key)) for key, path in inputs(config, rewards).items()},
        "recipe": options(config, root),
    }
    _write(out, made | kept)


def amend(out: Path, **more: Any) -> None:
    """Add to the manifest of a stage that was begun."""
    _write(out, (read(out) or {}) | more)


def finish(config: Config, seconds: float) -> None:
    """The stage is done: from now on the same recipe does nothing."""
    out = Path(config.out)
    outputs = {name: entry(out / name) for name in OUTPUTS[config.kind] if (out / name).exists()}
    amend(out, state="done", ended=time.time(), seconds=round(seconds, 3), outputs=outputs)


def changes(config: Config, root: Path | None = None, elsewhere: bool = False) -> list[str]:
    """Why what was made in `config.out` is not what `config` would make now; nothing if it is.

    `elsewhere`: this is not the directory where it was made, so files that are not there by their relative path say
    nothing.
    """
    out = Path(config.out)
    made = read(out)
    if made is None and any((out / "checkpoints").glob("v*")):
        return [f"{out} has checkpoints, but no {FILE} that says of what"]
    if made is None or not begun(made):
        return []
    if made["state"] == "damaged":
        return [f"{out / FILE} is damaged, so nobody knows what this was made from"]
    found = [told for key, told in _options_changed(made, config, root).items() if not _is(key, SCALE)]
    paths = inputs(config, made.get("rewards", ()))
    for key, was in made["inputs"].items():
        lost = elsewhere and not Path(paths.get(key, "")).exists() and not Path(was["path"]).is_absolute()
        if key in paths and not lost and not same(paths[key], was):
            gone = "sha256" in was and not Path(paths[key]).exists()
            found.append(f"{key}: {paths[key]} {'is not there any more' if gone else 'is not what it was'}")
    for name, was in made.get("outputs", {}).items():
        if not same(str(out / name), was):
            found.append(f"{out / name} is not what it was when the stage ended")
    return found


def rescaled(config: Config, root: Path | None = None) -> list[str]:
    """The options of `SCALE` that are not what they were: a run goes on with them, and says so."""
    made = read(Path(config.out))
    if made is None or not begun(made) or made["state"] == "damaged":
        return []
    return [told for key, told in _options_changed(made, config, root).items() if _is(key, SCALE)]


def _options_changed(made: Manifest, config: Config, root: Path | None) -> dict[str, str]:
    """Every option that is not what it was -> both values."""
    old, new, default = made["recipe"], json.loads(json.dumps(options(config, root))), options(Config())
    return {
        key: f"{key} was {was!r}, is {now!r}"
        for key in sorted({*old, *new})
        if (was := old.get(key, default.get(key))) != (now := new.get(key, default.get(key)))
    }


def _is(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def options(config: Config, root: Path | None = None) -> dict[str, Any]:
    """Every option that has a say in what is made, by its dotted name. What lies below `root` is written $…, so that
    a pipeline may be moved."""
    below = f"{root}/" if root else None

    def placed(value: Any) -> Any:
        return "$" + value.removeprefix(below) if below and isinstance(value, str) and value.startswith(below) else value

    said = OmegaConf.to_container(OmegaConf.structured(config))
    return {k: placed(v) for k, v in leaves(said) if not _is(k, FREE)}


def inputs(config: Config, rewards: Collection[str] = ()) -> dict[str, str]:
    """What a stage reads beside its recipe: option -> a path, or a name for a hub. Functions of one's own are files, and
    so is what those import from beside them. `rewards`: those that tasks name themselves."""
    tasks = config.tasks
    given = {"model": config.model if isinstance(config.model, str) else "", "export.scores": config.export.scores}
    if config.kind != "export":
        given |= {"tasks.path": tasks.path, "eval.path": config.eval.path}
        given |= {f"tasks.mixture.{name}.path": str(source.get("path", "")) for name, source in tasks.mixture.items()}
        given |= {"algorithm.reference": config.algorithm.reference}
        given |= {"tasks.chat_template": tasks.chat_template if "{" not in tasks.chat_template else ""}
        given |= {
            f"rewards.options.{name}.model": str(o["model"]) for name, o in config.rewards.options.items() if "model" in o
        }
        algorithm = config.algorithm
        names = [tasks.generate, *tasks.reward, *rewards, algorithm.loss, algorithm.advantage, algorithm.correction]
        for source in tasks.mixture.values():
            names += [str(source.get("generate", "")), *(mixed(source["reward"]) if "reward" in source else ())]
        for name in names:
            given |= _sources(name)
    return {key: path for key, path in given.items() if path}


def _sources(name: str) -> dict[str, str]:
    """The file of a function that is named my_module.my_function, and those that it imports from beside it; none of
    ours, and none that are installed."""
    module, dot, _ = name.rpartition(".")
    if not dot or module.split(".")[0] in ("gym", "rlreason"):
        return {}
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return {}
    file = Path(found.origin) if found and found.origin else None
    if file is None or not file.is_file() or "site-packages" in file.parts:
        return {}
    finder = ModuleFinder([str(file.parents[module.count(".")])])
    try:
        finder.run_script(str(file))
    except SyntaxError:  # told when it is imported
        return {f"code of {module}": str(file)}
    files: set[str] = {file for part in finder.modules.values() if (file := getattr(part, "__file__", None))}
    return {f"code of {Path(path).stem}": path for path in sorted(files)}


def told(path: str, root: Path | None, known: Entry | None = None) -> Entry:
    """An input as the manifest has it; one that is not a file here has only its name. `known`: as it was told before."""
    about: Entry = {"path": path}
    if root and Path(path).is_relative_to(root):
        about["stage"] = Path(path).relative_to(root).parts[0]
    if not Path(path).exists():
        return about
    if known and known.get("seen") == _seen(Path(path)):  # not touched since, and it may be a terabyte
        return known | about
    return about | entry(Path(path))


def entry(path: Path) -> Entry:
    """What identifies the content of a file, or of all the files of a folder."""
    return {"sha256": checksum(path), "seen": _seen(path)}


def same(path: str, was: Entry) -> bool:
    """Is the content still what it was? Read again only where sizes or times differ."""
    if "sha256" not in was:
        return not Path(path).exists()
    if not Path(path).exists():
        return False
    return bool(_seen(Path(path)) == was["seen"] or checksum(Path(path)) == was["sha256"])


def checksum(path: Path) -> str:
    """sha256 of a file; of a folder, of the names and checksums of its files."""
    if path.is_file():
        return checkpoint.checksum(path)
    return _hash(f"{file.relative_to(path)} {checkpoint.checksum(file)}\n" for file in _files(path))


def _seen(path: Path) -> str:
    stats = ((file, file.stat()) for file in _files(path))
    return _hash(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n" for file, stat in stats)[:16]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _hash(lines: Iterable[str]) -> str:
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


@cache
def code() -> dict[str, str]:
    """This version of rlreason: its number, and a hash of its sources, for a clone is seldom at a release."""
    package = Path(__file__).parent
    return {
        "version": __version__,
        "sha256": _hash(f"{p.relative_to(package)} {checkpoint.checksum(p)}\n" for p in sorted(package.rglob("*.py"))),
    }


# ---- weights ----

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}  # torch's dtype -> safetensors'


def weights(tensors: Iterable[tuple[str, str, list[int], Iterable[bytes | memoryview]]]) -> str:
    """sha256 of a model's weights: (name, dtype as safetensors has it, shape, bytes) of each tensor, by name.

    A learner's tensors and those of the directory that it was loaded from have the same, if the dtypes are.
    """
    total = hashlib.sha256()
    for name, dtype, shape, parts in tensors:
        total.update(f"{name} {dtype} {shape}\n".encode())
        for part in parts:
            total.update(part)
    return total.hexdigest()


def weights_of(folder: Path) -> str | None:
    """`weights` of a Hugging Face directory; None where it holds no safetensors."""
    found: dict[str, tuple[str, list[int], Path, int, int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        for name, about in header.items():
            if name != "__metadata__":
                start, end = (8 + size + offset for offset in about["data_offsets"])
                found[name] = about["dtype"], about["shape"], file, start, end
    if not found:
        return None
    return weights((n, dtype, shape, _bytes(file, start, end)) for n, (dtype, shape, file, start, end) in sorted(found.items()))


def _bytes(file: Path, start: int, end: int, block: int = 1 << 24) -> Iterator[bytes]:
    with file.open("rb") as f:
        f.seek(start)
        while start < end:
            part = f.read(min(block, end - start))
            if not part:
                raise StorageError(f"{file} is shorter than its header says")
            start += len(part)
            yield part


def _write(out: Path, made: Manifest) -> None:
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomic(out / FILE, json.dumps(made, indent=1))
