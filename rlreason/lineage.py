"""Which stages a model comes from, read from their manifests, wherever the run is now. Knows no engine."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlreason import checkpoint, manifest
from rlreason.config import Config
from rlreason.manifest import Entry
from rlreason.pipeline import MADE

HUB = re.compile(r"[\w.-]+/[\w.-]+")  # the name of a model or data set on a hub
URL = re.compile(r"\w+://\S+")
PATH = re.compile(r"(?<![\w$.~…-])~?(?:/[^\s/:,'\"<>]+){2,}/?")  # an absolute one, of two parts or more
SECRET = re.compile(r"(?:.*_)?(?:key|key_file|token|secret|password|authorization)", re.IGNORECASE)
ELSEWHERE = ("model", "kind", "seed", "tasks.path")  # options that the card tells apart from the others


@dataclass(frozen=True)
class Stage:
    """A stage that a model comes from."""

    folder: Path
    label: str  # its folder's name
    made: manifest.Manifest
    summary: dict[str, Any]  # {} where it has not ended
    takes: dict[str, Path]  # option -> the folder of the stage that it took that from
    renewed: list[str]  # of those, what is not what it was when it was taken

    def said(self, key: str) -> Any:
        """An option of its recipe."""
        return self.made["recipe"].get(key)

    def under(self, prefix: str) -> dict[str, Any]:
        """The options that begin with `prefix`, without it."""
        return {key.removeprefix(prefix): value for key, value in self.made["recipe"].items() if key.startswith(prefix)}

    @property
    def trains(self) -> bool:
        return bool(self.made["kind"] == "train")

    @property
    def metric(self) -> str:
        return str(self.said("eval.metric") or next(iter(self.under("tasks.reward.")), "exact"))


def maker(path: str) -> Path | None:
    """The folder of the stage that made `path`, a file or directory: its parent, or the parent's."""
    for place in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        for folder in Path(place).parents[:2]:
            if _is_stage(folder):
                return folder
    return None


def _is_stage(folder: Path) -> bool:
    """Is there a manifest, and one of ours? Others name files of theirs so, too."""
    try:
        made = json.loads((folder / manifest.FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(made, dict) and {"state", "kind", "recipe", "inputs"} <= made.keys()


def lineage(model: str) -> list[Stage]:
    """The stages that `model` comes from, each after those that it took from; [] where no manifest tells of any."""
    found: dict[Path, tuple[manifest.Manifest, dict[str, Path]]] = {}
    seen: set[Path] = set()

    def visit(folder: Path) -> None:
        seen.add(folder)
        made = manifest.read(folder) or {}
        takes = {key: before for key, entry in made["inputs"].items() if (before := _taken(folder, key, entry))}
        for before in takes.values():
            if before not in seen:
                visit(before)
        found[folder] = made, takes

    if last := maker(model):
        visit(last)
    names = Counter(folder.name for folder in found)
    labels = {folder: folder.name if names[folder.name] == 1 else f"{folder.parent.name}/{folder.name}" for folder in found}
    return [
        Stage(folder, labels[folder], made, _summary(folder), takes, [
            key for key, before in takes.items() if _renewed(made["inputs"][key], found[before][0])
        ])
        for folder, (made, takes) in found.items()
    ]  # fmt: skip


def _taken(folder: Path, key: str, entry: Entry) -> Path | None:
    """The stage that an input of the stage in `folder` comes from, if it is one that has a say in what is learnt."""
    if key in ("eval.path", "export.scores"):
        return None
    if "stage" in entry:  # of the same pipeline, wherever that is now
        beside = folder.parent / entry["stage"]
        return beside if _is_stage(beside) else None
    return maker(entry["path"])


def _renewed(entry: Entry, before: manifest.Manifest) -> bool:
    """Does the stage `before` hold something else now under the name that this was taken by?"""
    held = next((made for name, made in before.get("outputs", {}).items() if entry["path"].endswith(f"/{name}")), None)
    return held is not None and held["sha256"] != entry.get("sha256")


def _summary(folder: Path) -> dict[str, Any]:
    return checkpoint.read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}


def ancestors(stages: Sequence[Stage]) -> list[Stage]:
    """Of a lineage, the stages that hand on weights: each began with those of the one before it. The others gave data."""
    by_folder = {stage.folder: stage for stage in stages}
    chain = list(stages[-1:])
    while chain and (before := by_folder.get(chain[0].takes.get("model", Path()))) and before not in chain:
        chain.insert(0, before)
    return chain


def settings(stage: Stage) -> dict[str, Any]:
    """The options of its recipe that are not the default and that anybody may see."""
    default = _defaults()
    return {
        key: "(not shown)" if SECRET.fullmatch(key.rpartition(".")[2]) else shown(value)
        for key, value in stage.made["recipe"].items()
        if key not in ELSEWHERE and value != default.get(key) and value not in ({}, [])
    }


@cache
def _defaults() -> dict[str, Any]:
    options: dict[str, Any] = json.loads(json.dumps(manifest.options(Config())))
    return options


def shown(value: Any) -> Any:
    """An option without what is nobody else's business: of a path on this machine its name, of a URL nothing."""
    if isinstance(value, dict):
        return {key: "(not shown)" if SECRET.fullmatch(str(key)) else shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shown(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"[/~]\S*", value):
        return f"…/{Path(value).name}"
    return PATH.sub(lambda found: f"…/{Path(found[0]).name}", URL.sub("(a URL)", value))


def sources(stage: Stage) -> dict[str, dict[str, Any]]:
    """tasks.mixture, put together again: name -> what it says."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in stage.under("tasks.mixture.").items():
        name, _, rest = key.partition(".")
        found.setdefault(name, {})[rest] = value
    return found


def of_hub(entry: Entry) -> bool:
    return "sha256" not in entry and bool(HUB.fullmatch(entry["path"])) and not Path(entry["path"]).exists()


# ---- as text ----


def place(stage: Stage, key: str, stages: list[Stage]) -> str:
    """Where an input comes from, as a reader can follow it."""
    entry = stage.made["inputs"].get(key)
    if entry is None:
        return f"weights drawn at random (seed {stage.made['seed']})" if key == "model" else "–"
    if key in stage.takes:
        label = next(s.label for s in stages if s.folder == stage.takes[key])
        parts = Path(entry["path"]).parts
        at = max((i for i, part in enumerate(parts) if part == stage.takes[key].name), default=len(parts) - 2)
        return code("/".join([label, *parts[at + 1 :]]))
    if of_hub(entry):
        return link(entry["path"], "" if key == "model" else "datasets/")
    beside = stage.folder.parent / entry["stage"] if "stage" in entry else Path(entry["path"])
    if (mark := beside / MADE).is_file():
        return f"{code(beside.name)}, drawn at random (seed {checkpoint.read_json(mark)['seed']})"
    return code(entry["stage"] if "stage" in entry else shown(entry["path"]))


def data(stage: Stage, stages: list[Stage]) -> str:
    """What its tasks were."""
    if mixture := sources(stage):
        return ", ".join(
            place(stage, f"tasks.mixture.{name}.path", stages) if "path" in source else code(str(source.get("generate", name)))
            for name, source in mixture.items()
        )
    if made := stage.said("tasks.generate"):
        return f"{code(str(made))}, generated"
    return place(stage, "tasks.path", stages)


def data_names(stage: Stage) -> str:
    """The same in a word, for metadata; of an exam, what was asked in it."""
    said = stage.said("eval.path") or stage.said("tasks.generate") or stage.said("tasks.path")
    if mixture := {} if stage.said("eval.path") else sources(stage):
        said = " + ".join(str(source.get("path") or source.get("generate") or name) for name, source in mixture.items())
    return str(shown(str(said or "")))


def code(text: str) -> str:
    return f"`{' '.join(text.replace('`', '').split())}`"


def link(name: str, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})"
