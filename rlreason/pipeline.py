"""A recipe with stages: what each takes from the others, in which order they run, and what came of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rlreason import checkpoint, manifest, model, recipe, signals, space
from rlreason.config import Config
from rlreason.errors import Failure, RecipeError, Regressed
from rlreason.named import near
from rlreason.recipe import Setting

TAKES = {"train": "weights/last", "export": "model"}  # what `$stage` alone stands for
BASE = "base"  # the folder of the model that the pipeline begins with, where it is made from a config
MADE = "made.json"  # in it: what it was made from
STALE = "stale"  # the folder of what was moved aside


@dataclass(frozen=True)
class Pipeline:
    """Stages in the order in which they run, each with its recipe resolved; `out` is the folder that holds theirs."""

    out: Path
    stages: dict[str, Config]
    base: Any = None  # the model that it begins with; a mapping is made, in out/base
    seed: int = 0
    needs: dict[str, dict[str, str]] = field(default_factory=dict)  # stage -> option -> the stage that it takes it from


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
    of that stage's folder. Stages may stand in any order: they run when what they take is there.
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
    options = {f.name for f in fields(Config)} | {BASE, STALE}

    resolved: dict[str, Config] = {}
    places: dict[str, str] = {}
    taken: dict[str, list[Reference]] = {}
    for name, stage in stages.items():
        if not isinstance(name, str):
            problems.append(f"{source}: stages: {name!r} is no word, and YAML reads it as one only in quotes")
            continue
        where = places[name] = f"{source}:{lines[f'stages.{name}']}: stages.{name}"
        resolved[name], taken[name] = Config(), []
        if name in options or not name.replace("-", "").replace("_", "").isalnum():
            problems.append(f"{where}: a stage's name is a word of letters, digits, - and _, and no option's name")
            continue
        if not _is_stage(stage):
            problems.append(f"{where}: expected recipe: FILE and, if need be, set: [key=value, …]")
            continue
        settings, wrong = recipe.read((path.parent / stage["recipe"]).resolve())
        own, more = recipe.command_line(stage.get("set") or [], where)
        theirs = [o.removeprefix(f"{name}.") for o in mine if o.split(".")[0] not in stages or o.startswith(f"{name}.")]
        line, most = recipe.command_line(theirs)
        settings = [*settings, *common, *own, *line, Setting("out", str(out / name), source)]
        settings, taken[name], unknown = _referred(settings, base, out, name, list(stages))
        try:
            resolved[name] = recipe.checked(settings, [*wrong, *more, *most, *unknown], where)
        except RecipeError as error:
            problems += error.problems
    if not problems:
        for name, references in taken.items():
            for reference in references:
                problems += _bound(resolved, name, reference, out)
    order, cycle = _order({name: [r.stage for r in references] for name, references in taken.items()})
    if cycle:
        problems.append(f"{places[cycle[0]]}: the stages wait for each other: {' -> '.join([*cycle, cycle[0]])}")
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    needs = {name: {r.key: r.stage for r in taken[name]} for name in order}
    everywhere = [*common, *recipe.command_line([o for o in mine if o.startswith("seed=")])[0]]
    seed = next((s.value for s in reversed(everywhere) if s.key == "seed"), 0)
    return Pipeline(out, {name: resolved[name] for name in order}, base, int(seed), needs)


@dataclass(frozen=True)
class Reference:
    """An option of a stage that names what another stage makes."""

    key: str
    stage: str
    file: str  # "" where `$stage` stands alone
    where: str


def _is_stage(stage: Any) -> bool:
    if not isinstance(stage, dict) or not {"recipe"} <= stage.keys() <= {"recipe", "set"}:
        return False
    overrides = stage.get("set") or []
    return isinstance(stage["recipe"], str) and isinstance(overrides, list) and all(isinstance(o, str) for o in overrides)


def _referred(
    settings: list[Setting], base: Any, out: Path, own: str, names: list[str]
) -> tuple[list[Setting], list[Reference], list[str]]:
    """Put in what `$…` stands for; which stages that takes something from, and what is wrong with it.

    `$stage` alone stays as it is until all stages are known: what it is depends on the stage's kind.
    """
    result: list[Setting] = []
    references: dict[str, Reference] = {}
    problems: list[str] = []
    for setting in settings:
        references.pop(setting.key, None)  # an earlier layer's, which does not count any more
        if not (isinstance(setting.value, str) and setting.value.startswith("$")):
            result.append(setting)
            continue
        name, slash, rest = setting.value[1:].partition("/")
        if name == "base" and base is not None:
            # Whole: what an earlier layer said of a model must not show through.
            value = str(out / BASE) if isinstance(base, dict) else base
            result.append(Setting(setting.key, value, setting.where))
        elif name in names and name != own:
            path = out / name / rest if slash else out / name
            result.append(Setting(setting.key, str(path), setting.where))
            references[setting.key] = Reference(setting.key, name, rest, setting.where)
        else:
            known = [f"${n}" for n in ([BASE] if base is not None else []) + [n for n in names if n != own]]
            problems.append(f"{setting.where}: {setting.key}: {setting.value} is no {'other ' * (name == own)}stage; there is "
                            f"{', '.join(known) or 'none'}{near('$' + name, known)}")  # fmt: skip
    return result, list(references.values()), problems


def _bound(resolved: dict[str, Config], name: str, reference: Reference, out: Path) -> list[str]:
    """Put in what `$stage` alone stands for; say so if the stage makes no such thing."""
    kind = resolved[reference.stage].kind
    makes = manifest.OUTPUTS[kind]
    if not reference.file and kind in TAKES:
        recipe.put(resolved[name], reference.key, str(out / reference.stage / TAKES[kind]))
        return []
    if reference.file == "weights/best" and not resolved[reference.stage].eval.every:
        return [f"{reference.where}: {reference.key}: ${reference.stage}/weights/best: there is none without eval.every in it"]
    if reference.file in makes:
        return []
    asked = f"${reference.stage}" + f"/{reference.file}" * bool(reference.file)
    offered = ", ".join(f"${reference.stage}/{made}" for made in makes)
    return [f"{reference.where}: {reference.key}: {asked}: a stage of kind {kind} does not make that; it makes {offered}"]


def _order(needs: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """The stages in an order in which each comes after what it needs, as declared where that leaves a choice; or, if
    there is none, the stages of a cycle."""
    order: list[str] = []
    while ready := next((n for n in needs if n not in order and all(need in order for need in needs[n])), None):
        order.append(ready)
    if len(order) == len(needs):
        return order, []
    at = next(name for name in needs if name not in order)
    path: list[str] = []
    while at not in path:
        path.append(at)
        at = next(need for need in needs[at] if need not in order)
    return order, path[path.index(at) :]


def stale(pipeline: Pipeline) -> dict[str, list[str]]:
    """The stages whose work is not what the recipe would make now, and why; those that take it up among them."""
    found: dict[str, list[str]] = {}
    for name, config in pipeline.stages.items():
        reasons = manifest.changes(config, pipeline.out)
        if config.model == str(pipeline.out / BASE) and _base_changed(pipeline):
            reasons += ["base is another model, or made from another seed"]
        if manifest.begun(manifest.read(Path(config.out))):
            takes = sorted({need for need in pipeline.needs.get(name, {}).values() if need in found})
            reasons += [f"it takes up {need}, which is stale" for need in takes]
        if reasons:
            found[name] = reasons
    return found


def check(pipeline: Pipeline, redo: bool, force: bool = False) -> None:
    """Look at every input that exists before the first stage starts, at what was made by an older recipe, and at the room
    that all of it takes.

    Raises `RecipeError`: with what is missing or wrong, or with the stages that are stale, unless `redo` or `force`;
    `StorageError` if there is not enough room.
    """
    from rlreason import stages

    problems: list[str] = []
    for name, config in pipeline.stages.items():
        if stages.done(Path(config.out)):
            continue
        later = [*pipeline.needs.get(name, {})]
        if isinstance(pipeline.base, dict) and config.model == str(pipeline.out / BASE):
            later.append("model")
        try:
            stages.inputs(config, later)
        except RecipeError as error:
            problems += [f"stages.{name}: {problem}" for problem in error.problems]
    if problems:
        raise RecipeError(problems)
    if not redo and not force and (found := stale(pipeline)):
        told = [line for name, reasons in found.items() for line in [f"    {name}", *(f"        {r}" for r in reasons[:5])]]
        raise RecipeError([f"{pipeline.out}: the recipe has changed since these stages were made:", *told,
                           "    --redo makes them anew and moves what is there aside; --force goes on from what is there, and "
                           "leaves what is done as it is; or say another out=…"])  # fmt: skip
    space.check(pipeline.stages, pipeline.out, pipeline.base)


def run(pipeline: Pipeline, redo: bool = False, force: bool = False) -> dict[str, Any]:
    """Run the stages that are not done; returns the summary of the whole.

    `redo`: stages whose recipe or inputs have changed are moved aside and made anew. One whose inputs come out the same
    after all stays as it is. `force`: a changed stage that was begun goes on from its newest checkpoint, and one that is
    done stays as it is, unless `redo` is said too.
    """
    from rlreason import stages

    began = time.time()
    check(pipeline, redo, force)
    with stages.claimed(pipeline.out):
        return _run(pipeline, redo, began, force)


def _run(pipeline: Pipeline, redo: bool, began: float, force: bool) -> dict[str, Any]:
    from rlreason import stages

    out = pipeline.out
    whole = {"stages": {name: OmegaConf.to_container(OmegaConf.structured(c)) for name, c in pipeline.stages.items()}}
    checkpoint.write_atomic(out / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(whole)))
    graph = {"base": pipeline.base, "seed": pipeline.seed, "needs": pipeline.needs}
    checkpoint.write_atomic(out / "pipeline.json", json.dumps(graph, indent=1))
    if isinstance(pipeline.base, dict):
        _make_base(pipeline)
    summaries = {}
    with ExitStack() as stack:
        for name, config in pipeline.stages.items():
            if redo and (stages.done(Path(config.out)) or not force) and manifest.changes(config, out):
                stages.aside(Path(config.out), out / STALE)
            if stages.wants_engines(config):
                from rlreason import cluster

                stack.enter_context(cluster.connected())
            summaries[name] = stages.run(config, name, began, out, force)
            signals.between(f"stage {name}")
            if config.eval.gate == "stop" and (worse := summaries[name].get("regressions")):
                raise Regressed(f"stage {name} made the model worse than it was, so the pipeline stops (eval.gate: stop):",
                                worse, f"    {name}.eval.gate=report goes on all the same; nothing is done again")  # fmt: skip
    summary = combined(list(summaries.values())) | {"stages": list(summaries)}
    checkpoint.write_atomic(out / "summary.json", json.dumps(summary, indent=1))
    return summary


def _make_base(pipeline: Pipeline) -> None:
    """Draw the weights of the model that the stages begin with, once, so that all begin with the same bytes."""
    from rlreason import stages

    folder = pipeline.out / BASE
    if (folder / MADE).exists() and not _base_changed(pipeline):
        return
    partial = pipeline.out / f".{BASE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.make(pipeline.base, partial)
    command = [sys.executable, "-m", "rlreason.model", str(partial), str(pipeline.seed), str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"base: the model could not be made:\n{done.stderr[-2000:]}")
    checkpoint.write_atomic(partial / MADE, json.dumps({"base": pipeline.base, "seed": pipeline.seed}))
    stages.aside(folder, pipeline.out / STALE)
    partial.rename(folder)  # whole or not there


def _base_changed(pipeline: Pipeline) -> bool:
    made = pipeline.out / BASE / MADE
    return made.exists() and checkpoint.read_json(made) != {"base": pipeline.base, "seed": pipeline.seed}


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
