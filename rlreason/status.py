"""How far a run is: its stages as a graph, each with its state, times and scores. Reads files, starts nothing."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlreason import checkpoint, manifest
from rlreason.config import Config
from rlreason.display import duration
from rlreason.errors import StorageError
from rlreason.stages import running

COLOURS = {"done": "green", "running": "cyan", "stale": "yellow", "failed": "red", "cut off": "magenta", "stopped": "magenta"}


@dataclass(frozen=True)
class Stage:
    name: str
    kind: str
    takes: list[str]  # the stages before it, and base
    state: str  # waiting, running, done, stale, failed, stopped (as it was asked to), cut off (a crash)
    seconds: float | None
    steps: str
    score: str
    note: str


def stages(out: Path) -> list[Stage]:
    """The stages of the run in `out`, in their order; a run without stages is one."""
    recipe = out / "recipe.yaml"
    if not recipe.is_file():
        raise StorageError(f"{out} is no run's folder: it has no recipe.yaml")
    try:
        said: Any = OmegaConf.to_container(OmegaConf.load(recipe))
    except OmegaConfBaseException as error:
        raise StorageError(f"{recipe} is damaged: {error}") from None
    if "stages" not in said:
        return [_stage(out.name, out, said, [], None)]
    graph = checkpoint.read_json(out / "pipeline.json") if (out / "pipeline.json").exists() else {"needs": {}}
    found: list[Stage] = []
    for name, options in said["stages"].items():
        takes = sorted(set(graph["needs"].get(name, {}).values()))
        found.append(_stage(name, out / name, options, takes, out))
        if found[-1].state == "done" and any(one.name in takes and one.state == "stale" for one in found):
            found[-1] = Stage(**vars(found[-1]) | {"state": "stale", "note": "it takes up a stage that is stale"})
    return found


def _stage(name: str, out: Path, options: dict[str, Any], takes: list[str], root: Path | None) -> Stage:
    made = manifest.read(out) or {}
    said = str(options.get("out", out))
    if root:  # where it lay when it was made, and was called what it was called from there
        options = _moved(options, str(Path(said).parent), str(root))
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), options | {"out": str(out)}))
    assert isinstance(config, Config)
    state, note = str(made.get("state", "waiting")), str(made.get("why", ""))
    state = "cut off" if state == "begun" else state
    if running(out):
        state, note = "running", ""
    elif changed := manifest.changes(config, root, elsewhere=Path(said) != out):
        state, note = "stale", changed[0] + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
    summary = (
        checkpoint.read_json(out / "summary.json") if state in ("done", "stale") and (out / "summary.json").exists() else {}
    )
    if made and made.get("code") != manifest.code():
        version, sha256 = (made.get("code") or {"version": "?", "sha256": "?"}).values()
        note = "; ".join(filter(None, [note, f"made by other code: rlreason {version} ({sha256[:8]})"]))
    if worse := summary.get("regressions"):
        note = "; ".join(filter(None, [note, *(f"worse: {one}" for one in worse)]))
    seconds = made.get("seconds") if state != "running" else time.time() - made.get("began", time.time())
    return Stage(
        name,
        config.kind,
        takes,
        state,
        seconds,
        _steps(out, config),
        _score(out, summary),
        note.splitlines()[0] if note else "",
    )


def _moved(value: Any, old: str, new: str) -> Any:
    """Options with every path below `old` below `new`."""
    if isinstance(value, dict):
        return {key: _moved(inner, old, new) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(f"{old}/"):
        return new + value.removeprefix(old)
    return value


def _steps(out: Path, config: Config) -> str:
    try:
        last = (out / "metrics.jsonl").read_text().splitlines()[-1:]
    except OSError:
        return ""
    done = json.loads(last[0])["step"] if last and last[0].endswith("}") else 0
    return f"{done}/{config.loop.steps}" if config.kind == "train" else f"{done}"


def _score(out: Path, summary: dict[str, Any]) -> str:
    """Accuracy before and after; of a stage that goes on, what is known of them."""
    ends = {when: summary.get(f"accuracy_{when}") for when in ("before", "after")}
    for when, score in ends.items():
        if score is None and (file := out / "evaluations" / f"{when}.json").exists():
            ends[when] = checkpoint.read_json(file)["accuracy"]
    return " → ".join(f"{score['mean']:.3f}" for score in ends.values() if score)


def show(out: Path, console: Console | None = None) -> None:
    """Print the graph as a table."""
    table = Table(title=str(out), title_justify="left")
    for column in ("stage", "kind", "takes", "state", "time", "steps", "score"):
        table.add_column(column, overflow="fold")
    found = stages(out)
    for stage in found:
        seconds = duration(stage.seconds) if stage.seconds is not None else ""
        state = Text(stage.state, style=COLOURS.get(stage.state, ""))
        table.add_row(stage.name, stage.kind, ", ".join(stage.takes), state, seconds, stage.steps, stage.score)
    console = console or Console(highlight=False)
    console.print(table)
    for note in dict.fromkeys(stage.note for stage in found if stage.note):
        console.print(Text(f"{', '.join(stage.name for stage in found if stage.note == note)}: {note}"), soft_wrap=True)
