"""A recipe with stages: what each reads from the others, in which order they run, and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rlreason import checkpoint, recipe
from rlreason.config import Config
from rlreason.errors import RecipeError
from rlreason.recipe import Setting


@dataclass(frozen=True)
class Pipeline:
    """Stages in their order, each with its recipe resolved; `out` is the folder that holds theirs."""

    out: Path
    stages: dict[str, Config]


def is_pipeline(path: Path) -> bool:
    """Does the file have `stages`? What else may be wrong with it is told by whoever reads it whole."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(root, yaml.MappingNode) and any(key.value == "stages" for key, _ in root.value)


def load(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Resolve every stage before anything starts. Raises `RecipeError` with the problems of all of them.

    Weakest first, a stage's settings are: its recipe, what the pipeline says for all stages, the stage's own `set`,
    the command line. An override whose key begins with a stage's name is for that stage alone.

    A value `$base` is the pipeline's `base`, `$name` the model that stage `name` ends with, and `$name/file` a file
    of that stage's folder.
    """
    document, lines = recipe.document(path)
    source = recipe.shown(path)
    stages = document.pop("stages")
    base = document.pop("base", None)
    problems: list[str] = []
    if not isinstance(stages, dict) or not stages:
        raise RecipeError([f"{source}: stages: expected a mapping of names to stages"])
    mine: list[str] = []
    for override in overrides:
        if override.startswith("base="):
            base = override.removeprefix("base=")
        elif override.startswith("out="):
            document["out"] = override.removeprefix("out=")
        elif override.startswith("model="):
            problems.append(f"command line: {override}: each stage has its model; the one it all begins with is base=…")
        else:
            mine.append(override)
    if not document.get("out"):
        problems.append(f"{source}: out is missing: the recipe has to say it")
    out = Path(str(document.pop("out", "-")))
    common = [Setting(k, v, source) for k, v in recipe.leaves(document)]

    resolved: dict[str, Config] = {}
    for name, stage in stages.items():
        where = f"{source}:{lines[f'stages.{name}']}: stages.{name}"
        if not _is_stage(stage):
            problems.append(f"{where}: expected recipe: FILE and, if need be, set: [key=value, …]")
            continue
        settings, wrong = recipe.read((path.parent / stage["recipe"]).resolve())
        own, more = recipe.command_line(stage.get("set") or [], where)
        theirs = [o.removeprefix(f"{name}.") for o in mine if o.split(".")[0] not in stages or o.startswith(f"{name}.")]
        line, most = recipe.command_line(theirs)
        settings = [*settings, *common, *own, *line, Setting("out", str(out / name), source)]
        settings, unknown = _referred(settings, base, out, list(resolved))
        try:
            resolved[name] = recipe.checked(settings, [*wrong, *more, *most, *unknown], where)
        except RecipeError as error:
            problems += error.problems
            resolved[name] = Config()
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return Pipeline(out, resolved)


def _is_stage(stage: Any) -> bool:
    if not isinstance(stage, dict) or not {"recipe"} <= stage.keys() <= {"recipe", "set"}:
        return False
    overrides = stage.get("set") or []
    return isinstance(stage["recipe"], str) and isinstance(overrides, list) and all(isinstance(o, str) for o in overrides)


def _referred(settings: list[Setting], base: Any, out: Path, earlier: list[str]) -> tuple[list[Setting], list[str]]:
    """Put in what `$…` stands for."""
    result, problems = [], []
    for setting in settings:
        if not (isinstance(setting.value, str) and setting.value.startswith("$")):
            result.append(setting)
            continue
        name, slash, rest = setting.value[1:].partition("/")
        if name == "base" and base is not None:
            # Whole: what an earlier layer said of a model must not show through.
            result.append(Setting(setting.key, base, setting.where))
        elif name in earlier:
            path = out / name / rest if slash else out / name / "weights" / "last"
            result.append(Setting(setting.key, str(path), setting.where))
        else:
            known = ", ".join(f"${n}" for n in (["base"] if base is not None else []) + earlier)
            problems.append(f"{setting.where}: {setting.key}: {setting.value} is no earlier stage; there is {known or 'none'}")
    return result, problems


def run(pipeline: Pipeline) -> dict[str, Any]:
    """Run the stages that are not done; returns the summary of the whole."""
    from rlreason import stages

    began = time.time()
    pipeline.out.mkdir(parents=True, exist_ok=True)
    whole = {"stages": {name: OmegaConf.to_container(OmegaConf.structured(c)) for name, c in pipeline.stages.items()}}
    checkpoint.write_atomic(pipeline.out / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(whole)))
    summaries = {name: stages.run(stage, name, began) for name, stage in pipeline.stages.items()}
    summary = combined(list(summaries.values())) | {"stages": list(summaries)}
    checkpoint.write_atomic(pipeline.out / "summary.json", json.dumps(summary, indent=1))
    return summary


def combined(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One summary of several runs in a row: the first accuracy and the last, sums, and maxima."""

    def known(key: str) -> list[Any]:
        return [s[key] for s in summaries if s.get(key) is not None]

    return {
        "accuracy_before": next(iter(known("accuracy_before")), None),
        "accuracy_after": next(reversed(known("accuracy_after")), None),
        "policy_gap_max": max(known("policy_gap_max"), default=None),
        "seconds_to_first_step": next(iter(known("seconds_to_first_step")), None),
        "seconds": round(sum(known("seconds")), 3),
        "steps": sum(known("steps")),
        "tokens": sum(known("tokens")),
        "peak_rss_bytes": max(known("peak_rss_bytes"), default=None),
        "model": summaries[-1]["model"],
    }
