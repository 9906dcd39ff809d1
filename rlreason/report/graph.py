"""A pipeline at a glance: its stages in order, what each takes from which other, how far it is and how it scored."""

from __future__ import annotations

import re
from typing import Any

from rlreason.report.facts import accuracy, seconds
from rlreason.report.read import Run
from rlreason.report.text import duration, esc, percent, real

TONES = {"done": "good", "failed": "bad", "waiting": "soft"}
STAGES = 200  # rows


def graph_html(run: Run) -> str:
    """A table of the pipeline's stages, those that have not begun among them; each leads to its section."""
    if not run.stages:
        return ""
    planned = run.options.get("stages")
    recipes = {str(name): recipe for name, recipe in planned.items()} if isinstance(planned, dict) else {}
    names = list(recipes)
    places = {stage.name: at for at, stage in enumerate(run.stages)}
    names += [stage.name for stage in run.stages if stage.name not in names]
    made = {stage.name: stage for stage in run.stages}
    rows = [
        _row(name, made.get(name), _kind(made.get(name), recipes.get(name)), takes(name, made.get(name), run), places)
        for name in names[:STAGES]
    ]
    heads = "".join(
        f'<th scope="col">{head}</th>' for head in ("stage", "kind", "takes", "state", "time", "accuracy", "weights")
    )
    return (
        '<nav class="graph scroll" aria-label="Stages"><table><thead><tr>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></nav>"
    )


def takes(name: str, stage: Run | None, run: Run) -> dict[str, list[str]]:
    """Stage -> the options for which `name` takes something from it. `base` is what the pipeline began with."""
    needs = run.graph.get("needs")
    wanted = needs.get(name) if isinstance(needs, dict) else None
    found = {str(option): str(other) for option, other in wanted.items()} if isinstance(wanted, dict) else {}
    inputs = stage.manifest.get("inputs") if stage else None
    for option, entry in inputs.items() if isinstance(inputs, dict) else ():
        if isinstance(entry, dict) and entry.get("stage"):
            found.setdefault(option, str(entry["stage"]))
    base = run.graph.get("base")
    if stage and isinstance(base, str) and stage.options.get("model") == base:
        found.setdefault("model", "base")
    by: dict[str, list[str]] = {}
    for option, other in found.items():
        by.setdefault(other, []).append(option)
    return by


def state(stage: Run | None) -> str:
    """As its manifest has it: done, failed, stopped, or begun, which may be running or cut off; waiting without one."""
    if stage is None:
        return "waiting"
    return str(stage.manifest.get("state") or ("done" if stage.summary else "begun"))


def why(stage: Run) -> list[str]:
    """What is to be known of it at once: why it failed, and where it made the model worse."""
    failed = [str(stage.manifest["why"])] if state(stage) in ("failed", "stopped") and stage.manifest.get("why") else []
    lost = stage.summary.get("regressions")
    return failed + [f"worse: {one}" for one in lost if one] if isinstance(lost, list) else failed


def _kind(stage: Run | None, recipe: Any) -> str:
    if stage:
        return stage.kind
    return str(recipe.get("kind") or "") if isinstance(recipe, dict) else ""


def _row(name: str, stage: Run | None, kind: str, by: dict[str, list[str]], places: dict[str, int]) -> str:
    now = state(stage)
    notes = "".join(f'<small class="bad">{esc(note.splitlines()[0], 160)}</small>' for note in why(stage)[:6]) if stage else ""
    cells = [
        esc(kind, 20),
        ", ".join(f"{_link(other, places)}<small>{esc(', '.join(map(_short, by[other])), 80)}</small>" for other in by),
        f'<span class="{TONES.get(now, "fair")}">{esc(now, 20)}</span>{notes}',
        _time(stage),
        _score(stage),
        _weights(stage),
    ]
    return f'<tr><th scope="row">{_link(name, places)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _link(name: str, places: dict[str, int]) -> str:
    return f'<a href="#stage-{places[name]}">{esc(name, 60)}</a>' if name in places else esc(name, 60)


def _short(option: str) -> str:
    """What of an option tells it from the others: `sums` of tasks.mixture.sums.path."""
    return re.sub(r"^tasks\.mixture\.(.+)\.path$", r"\1", option).removeprefix("tasks.").removeprefix("export.")


def _time(stage: Run | None) -> str:
    """Of the command that ended it; of a stage that was taken up again that is not all."""
    if stage is None:
        return ""
    spent = real(stage.manifest.get("seconds"))
    spent = seconds(stage) if spent is None else spent
    again = sum(event.get("event") == "start" and event.get("resumed") is True for event in stage.events)
    since = (
        f"<small>since it was resumed{f', {again} times' if again > 1 else ''}</small>" if again and spent is not None else ""
    )
    return f"{duration(spent)}{since}" if spent is not None else ""


def _score(stage: Run | None) -> str:
    if stage is None:
        return ""
    ends = [a for when in ("before", "after") if (a := accuracy(stage.summary, when))]
    if not ends:  # it goes on, or failed
        ends = [e.accuracy for e in (stage.exams[:1] + stage.exams[1:][-1:]) if e.accuracy]
    return " → ".join(percent(a.mean) for a in ends)


def _weights(stage: Run | None) -> str:
    """The first digits of the hashes of the weights that it began and ended with, so that like ones can be told."""
    said: Any = stage.manifest.get("weights") if stage else None
    ends = [str(said[when]) for when in ("begin", "end") if said.get(when)] if isinstance(said, dict) else []
    return " → ".join(f'<code title="{esc(one, 100)}">{esc(one[:6])}</code>' for one in ends)
