"""The whole page: its head, a headline for each kind of run, its stages, and what it was made from."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from importlib.resources import files
from string import Template

from rlreason.report.chart import Interval, intervals
from rlreason.report.curves import around
from rlreason.report.facts import accuracy, change, subtitle, tiles
from rlreason.report.graph import graph_html
from rlreason.report.read import Run
from rlreason.report.scores import Accuracy
from rlreason.report.stage import stage_html, tiles_html
from rlreason.report.text import esc, percent

ANSWERS = 1_300_000  # bytes of answers in a page, all stages together; with the curves it stays below 3 MB
POINTS = 600  # per curve, all stages together
RECIPE = 40_000  # characters of recipes, all together, and of summaries


def page_html(run: Run) -> str:
    """`run` as one HTML document that loads nothing. Its only script is named by hash, so that no other can run."""
    room = files(__package__)
    template, css, script = (room.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    stages = run.stages or [run]
    buckets = max(20, min(240, POINTS // len(stages)))
    body = [_stage(stage, at, stage is run, buckets, ANSWERS // len(stages)) for at, stage in enumerate(stages)]
    sources = [_sources(r, RECIPE // (len(run.stages) + 1)) for r in (run, *run.stages)]
    return Template(template).substitute(
        title=esc(run.name, 200),
        subtitle=esc(subtitle(run) or _counted(run), 400),
        css=css,
        script=script,
        digest=digest,
        headline=_headline(run),
        contents=graph_html(run),
        stages="".join(body),
        sources=_made_from("".join(sources)),
    )


def _headline(run: Run) -> str:
    """Accuracy before and after, large; of a pipeline also every stage's, and the totals."""
    before, after = _ends(run)
    out = []
    if before and after:
        rows = [
            ("before", [_interval(before, "before")], percent(before.mean)),
            ("after", [_interval(after, "after")], percent(after.mean)),
        ]
        drawn = intervals("accuracy", "Accuracy before and after, with 95 % intervals", rows, around(_edges([before, after])))
        out.append(
            '<div class="headline"><div><p class="big">'
            f'<span>{percent(before.mean)}</span> <i aria-label="to">→</i> <strong>{percent(after.mean)}</strong></p>'
            f'<p class="change">Accuracy: {esc(change(before, after))}</p>'
            f'<p class="note">Before {esc(before)}.<br>After {esc(after)}.</p></div>'
            f"{drawn}</div>"
        )
    elif one := before or after:
        when = "" if run.kind != "train" else " before training" if before else " after training"
        out.append(
            f'<div class="headline"><p class="big"><strong>{percent(one.mean)}</strong></p>'
            f'<p class="change">Accuracy{when}: {esc(one)}.</p></div>'
        )
    if not run.summary:
        out.append('<p class="going">No summary yet: the run is still going, or ended early.</p>')
    if run.stages:
        out += [f'<p class="note bad warning">{esc(fault, 400)}</p>' for fault in run.faults[:20]]
        out.append(tiles_html([t for t in tiles(run) if not t.name.startswith("Accuracy")]))
        out.append(_ladder(run))
    return "".join(out)


def _ends(run: Run) -> tuple[Accuracy | None, Accuracy | None]:
    """The run's accuracies; a pipeline that has none takes its first stage's before and its last stage's after."""
    before, after = accuracy(run.summary, "before"), accuracy(run.summary, "after")
    if before or after or not run.stages:
        return before, after
    firsts = (a for stage in run.stages if (a := accuracy(stage.summary, "before")))
    lasts = (a for stage in reversed(run.stages) if (a := accuracy(stage.summary, "after")))
    return next(firsts, None), next(lasts, None)


def _ladder(run: Run) -> str:
    """What each stage added: a row a stage on one axis."""
    ours = [s for s in run.stages if s.kind != "export"]  # whose score is that of the examination that it names
    measured = [(s.name, accuracy(s.summary, "before"), accuracy(s.summary, "after")) for s in ours]
    known = [a for _, *both in measured for a in both if a]
    if len([row for row in measured if row[1] or row[2]]) < 2:
        return ""
    rows = [
        (name, [_interval(a, kind) for a, kind in both if a], " → ".join(percent(a.mean) for a, _ in both if a))
        for name, *ends in measured
        if any(ends)
        for both in [tuple(zip(ends, ("before", "after"), strict=True))]
    ]
    drawn = intervals("ladder", "Accuracy before and after each stage", rows, around(_edges(known)))
    head = (
        '<h2 class="minor">Stage by stage</h2><p class="how">Hollow: before the stage; full: after it, or by a stage that '
        "asks without training. Each on its own tasks.</p>"
    )
    return f'{head}<div class="ladder">{drawn}</div>'


def _interval(a: Accuracy, kind: str) -> Interval:
    return Interval(a.mean, a.span, kind)


def _edges(known: list[Accuracy]) -> list[float]:
    return [edge for a in known for edge in (a.mean, *(a.span or ()))]


def _stage(run: Run, at: int, alone: bool, buckets: int, budget: int) -> str:
    """A section; a run that is no pipeline's needs no heading of its own, for the page's is the same."""
    made = [tile for tile in tiles(run) if not (alone and tile.name.startswith("Accuracy"))]  # the headline has it
    body = stage_html(run, made, f"c{at}", buckets, budget)
    if alone:
        return f'<section class="stage" id="stage-{at}" aria-label="The run"><h2 class="unseen">The run</h2>{body}</section>'
    said = f'<p class="sub">{esc(said, 400)}</p>' if (said := subtitle(run)) else ""
    head = f'<h2 id="stage-{at}-name">{esc(run.name, 100)}</h2>{said}'
    return f'<section class="stage" id="stage-{at}" aria-labelledby="stage-{at}-name">{head}{body}</section>'


def _made_from(folded: str) -> str:
    return f'<section class="sources" aria-label="Sources"><h2 class="minor">Made from</h2>{folded}</section>' if folded else ""


def _sources(run: Run, limit: int) -> str:
    """The recipe and the summary as they are, folded."""
    out = ""
    texts = {"recipe.yaml": run.recipe, "summary.json": json.dumps(run.summary, indent=2) if run.summary else ""}
    for name, text in texts.items():
        if text:
            kept = esc(text, limit)
            cut = '<p class="cut">cut here; the file has the rest</p>' if len(text) > limit else ""
            out += f"<details><summary>{esc(run.name, 60)}/{name}</summary><pre>{kept}</pre>{cut}</details>"
    return out


def _counted(run: Run) -> str:
    return f"{len(run.stages)} stages" if run.stages else ""
