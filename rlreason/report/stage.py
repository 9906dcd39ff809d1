"""One stage of a report: its tiles, curves, times, events and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlreason.report.chart import lines
from rlreason.report.curves import curve, frame, kept, span_of
from rlreason.report.events import events_html
from rlreason.report.facts import Tile
from rlreason.report.held_out import held_out_html, scores_html
from rlreason.report.product import export_html, kept_html
from rlreason.report.read import Metrics, Run
from rlreason.report.rollouts import rollouts_html, sides
from rlreason.report.text import esc, number
from rlreason.report.times import times_html


@dataclass(frozen=True)
class Plan:
    """A chart to draw if the run has its metrics."""

    title: str
    hint: str
    names: tuple[str, ...]
    log: bool = False
    exact: bool = False  # drawn as it is, unsmoothed
    threshold: tuple[float, str] | None = None


PLANS = (
    Plan("Loss", "what the learner minimises", ("loss",)),
    Plan(
        "Policy gap",
        "mean |log p learner − log p sampler|",
        ("policy_gap",),
        log=True,
        threshold=(1e-5, "on-policy below"),
    ),
    Plan("Entropy", "of the policy's next token, in nats", ("entropy",)),
    Plan("Answer length", "mean, in tokens", ("length",)),
    Plan("Truncated", "share of answers cut off at the token limit", ("truncated",)),
    Plan("Gradient norm", "before clipping", ("grad_norm",)),
    Plan("Lag", "weight versions between sampling and training", ("lag",)),
    Plan("Set aside", "groups, samples and prompts that were not trained on", ("dropped", "unjudged", "failed", "overlong")),
    Plan("KL to the reference", "mean log(policy / reference) of the sampled tokens", ("reference_kl",)),
    Plan("Mismatch", "KL(sampler‖learner), estimated by k3", ("mismatch/k3",), log=True),
    Plan("Learning rate", "at every step", ("lr",), exact=True),
    Plan("Throughput", "tokens a second", ("time/tokens_per_second",)),
    Plan("Straggling", "how many times as long as the others the slowest learner takes", ("time/straggle",)),
    Plan("Kept", "answers of a wave", ("kept",), exact=True),
)
PARTS = 5  # components of the reward in one chart
OTHERS = 12  # charts of metrics that this page has no plan for


def stage_html(run: Run, made: Sequence[Tile], ident: str, buckets: int, budget: int) -> str:
    """All of one stage: its tiles, what is particular to its kind, curves of about `buckets` points, `budget` bytes of
    answers."""
    out = [tiles_html(made), _faults(run)]
    if run.kind == "export":
        return "".join([*out, export_html(run), events_html(run.events)])
    if run.kind == "train":
        out.append(held_out_html(run, ident))
    else:
        out += [kept_html(run), scores_html(run.scores, ident, "Scores" if run.kind == "eval" else "The answers' scores")]
    out.append(_steps(run, ident, buckets))
    if shown := sides(run.rollouts):
        out.append(f"<h3>Answers, early and late</h3>{rollouts_html(shown, budget)}")
    out.append(events_html(run.events))
    return "".join(out)


def _steps(run: Run, ident: str, buckets: int) -> str:
    """Curves and times; folded of a stage that does not train, for its steps are only waves of questions."""
    if not len(run.metrics.steps):
        return '<p class="empty">No step has been finished yet.</p>'
    times = times_html(run.metrics, ident, buckets)
    if run.kind == "train":
        return _curves(run, ident, buckets) + times
    if len(run.metrics.steps) == 1:  # curves of one point
        return f"<details><summary>Its time</summary>{times}</details>" if times else ""
    return f"<details><summary>Curves and times of its waves</summary>{_curves(run, ident, buckets)}{times}</details>"


def _faults(run: Run) -> str:
    """Why it did not end, and which of its files are not shown."""
    told = []
    if (why := run.manifest.get("why")) and run.manifest.get("state") in ("failed", "stopped"):
        told.append(f"{run.manifest['state']}: {why}")
    return "".join(f'<p class="note bad warning">{esc(one, 2000)}</p>' for one in (*told, *run.faults[:20]))


def tiles_html(made: Sequence[Tile]) -> str:
    if not made:
        return ""
    tones = {"good": " good", "fair": " fair", "bad": " bad"}
    body = "".join(
        f"<div><dt>{esc(t.name)}</dt><dd>{esc(t.value)}</dd>"
        + (f'<dd class="sub{tones.get(t.tone, "")}">{esc(t.note)}</dd>' if t.note else "")
        + "</div>"
        for t in made
    )
    across = -(-len(made) // -(-len(made) // 6))  # at most six in a row, and rows of about the same length
    return f'<dl class="tiles" style="--across:{across}">{body}</dl>'


def _curves(run: Run, ident: str, buckets: int) -> str:
    metrics, algorithm = run.metrics, run.options.get("algorithm")
    recorded = isinstance(algorithm, dict) and algorithm.get("answers") == "recorded"
    parts = [name for name in metrics.columns if name.startswith("reward/")]
    reward = Plan("Reward", f"mean over a step's {'recorded ' * recorded}answers, and its parts", ("reward", *parts[:PARTS]))
    planned = {name for plan in (reward, *PLANS) for name in plan.names}
    rest = [n for n in metrics.columns if n not in planned and not n.startswith("time/") and n != "tokens"]
    rest.sort()
    main, constant = _drawn(metrics, (reward, *PLANS), ident, buckets, wide="Reward")
    more, still = _drawn(metrics, [Plan(name, "", (name,)) for name in rest[:OTHERS]], f"{ident}-more", buckets)
    out = [f'<h3>Curves</h3><p class="how">{_how(metrics, buckets)}</p><div class="charts">{main}</div>']
    if constant or still:
        out.append(f'<p class="note">The same at every step: {esc(", ".join((*constant, *still)), 2000)}.</p>')
    if len(rest) > OTHERS:
        more += f'<p class="note">{len(rest) - OTHERS} more are in metrics.jsonl.</p>'
    if more:
        out.append(f'<details><summary>More metrics</summary><div class="charts">{more}</div></details>')
    told = ("reward", *(name for plan in PLANS for name in plan.names))
    return "".join(out) + _table(metrics, [name for name in told if name in metrics.columns])


def _drawn(metrics: Metrics, plans: Sequence[Plan], ident: str, buckets: int, wide: str = "") -> tuple[str, list[str]]:
    """(the charts that have something to show, the metrics that never change and so have not)."""
    ends = (int(metrics.steps[0]), int(metrics.steps[-1]))
    out, constant = [], []
    for at, plan in enumerate(plans):
        log = plan.log and any((metrics.get(name) > 0).any() for name in plan.names)
        drawn = [c for name in plan.names if (c := curve(metrics, name, buckets, log, plan.exact))]
        still = [c for c in drawn if c.low.min() == c.high.max() and len(metrics.steps) > 1]
        faults = [
            f"{name} was NaN or infinite at {number(times)} step{'s'[: int(times > 1)]}, first at step {first:,}."
            for name in plan.names
            if name in metrics.faults
            for times, first in [metrics.faults[name]]
        ]
        moving = [c for c in drawn if c not in still or faults]
        constant += [f"{c.name} {number(c.smooth[-1])}" for c in still if c not in moving]
        if moving:
            scale = frame(moving, log, plan.threshold[0] if plan.threshold else None)
            wider, name = plan.title == wide, f"{ident}-{at}"
            out.append(lines(name, plan.title, plan.hint, moving, scale, ends, plan.threshold, wider, faults))
        elif faults:
            out.append(f'<p class="note bad">{esc(" ".join(faults), 400)}</p>')
    return "".join(out), constant


def _how(metrics: Metrics, buckets: int) -> str:
    steps = len(metrics.steps)
    span = span_of(steps)
    line = f"Lines are moving averages over about {number(span)} steps" if span > 1 else "Lines join the steps"
    if kept(steps, buckets) == steps:
        return f"{line}; points are single steps."
    return f"{line}; bands span the least and greatest of each {steps / buckets:,.0f} or so of the {steps:,} steps."


def _table(metrics: Metrics, names: Sequence[str]) -> str:
    """A dozen steps in figures, for those who read numbers or cannot see curves."""
    names = names[:10]
    rows = sorted({round(i * (len(metrics.steps) - 1) / 11) for i in range(12)})
    body = "".join(
        f'<tr><th scope="row">{metrics.steps[at]:,}</th>'
        + "".join(f"<td>{number(metrics.columns[name][at])}</td>" for name in names)
        + "</tr>"
        for at in rows
    )
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in names)
    return (
        '<details><summary>The curves in figures</summary><div class="scroll"><table><thead><tr>'
        f'<th scope="col">step</th>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )
