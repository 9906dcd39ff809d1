"""What held-out tasks showed: accuracy over a training's steps with its intervals, and every score of an examination."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlreason.report.chart import Interval, Series, intervals, points
from rlreason.report.curves import around
from rlreason.report.read import Run
from rlreason.report.scores import Accuracy, Exam, Scores, largest, main
from rlreason.report.text import esc, number, percent

LINES = 6  # in one chart, that of all tasks among them
COLUMNS = 8  # domains in one table
ROWS = 40  # scores in one table
ALL = "all"  # how the whole is called, beside its domains


def held_out_html(run: Run, ident: str) -> str:
    """Of a stage that trains: its regressions, a chart of all its exams, and every score of the last."""
    lost = run.summary.get("regressions")
    worse = lost if isinstance(lost, list) else []
    warned = "".join(f'<p class="note bad warning">Worse than before training: {esc(one, 300)}</p>' for one in worse[:20])
    if not run.exams and not warned:
        return ""
    first, last = (run.exams[0], run.exams[-1]) if run.exams else (None, None)
    chart = f'<div class="charts">{_chart(run, ident)}</div>' if len(run.exams) > 1 else ""
    table = ""
    if last and last.scores:
        whose = f"after step {last.step:,}" if last.step else "before training"
        before = first if first and first.step < last.step else None
        compared = f", with the change from step {before.step:,} in points" if before else ""
        table = f"<details><summary>Every score {whose}{compared}</summary>{table_html(last, before)}</details>"
    return f"<h3>Held-out tasks</h3>{warned}{chart}{table}"


def _chart(run: Run, ident: str) -> str:
    chosen, more = largest(run.exams, LINES - 1)
    several = len(chosen) + more > 1
    of = {ALL: [(e.step, e.accuracy) for e in run.exams]}
    if several:
        of |= {name: [(e.step, main(e.domains.get(name, {}))) for e in run.exams] for name in chosen}
    drawn = [series for name, held in of.items() if (series := _series(name if several else run.exams[-1].metric, held))]
    if not drawn:
        return ""
    notes = [f"{more} more domains are in evaluations/."] if more else []
    asked = run.exams[-1].accuracy
    others = ", or a task's own first reward" if several else ""
    judged = f"by {run.exams[-1].metric}{others}, with 95 % intervals"
    hint = judged + (f", on {number(asked.n)} tasks" if asked and asked.n else "")
    spread = [edge for s in drawn for edge in (s.low.min(), s.high.max())]
    mark = None if run.best is None else (run.best, f"best: step {run.best:,}")
    if mark and not min(s.steps[0] for s in drawn) <= mark[0] <= max(s.steps[-1] for s in drawn):
        mark = None
    return points(f"{ident}-held-out", "Held-out accuracy", hint, drawn, around(spread), mark, notes)


def _series(name: str, held: Sequence[tuple[int, Accuracy | None]]) -> Series | None:
    known = [(step, a.mean, *(a.span or (a.mean, a.mean))) for step, a in held if a]
    if not known:
        return None
    steps, *values = zip(*known, strict=True)
    return Series(name, np.array(steps, dtype=np.int64), *(np.array(column) for column in values))


def scores_html(exam: Exam | None, ident: str, title: str) -> str:
    """Of an examination: accuracy by domain as a chart where there are several, and every score as a table."""
    if exam is None:
        return ""
    rows: list[tuple[str, Accuracy]] = [(ALL, a)] if (a := exam.scores.get("pass@1") or exam.accuracy) else []
    chosen, more = largest([exam], COLUMNS)
    rows += [(name, a) for name in chosen if (a := exam.domains[name].get("pass@1") or main(exam.domains[name]))]
    drawn = ""
    if len(rows) > 2:
        placed = [(name, [Interval(a.mean, a.span, "after")], percent(a.mean)) for name, a in rows]
        frame = around([edge for _, a in rows for edge in (a.mean, *(a.span or ()))])
        drawn = f'<div class="ladder">{intervals(f"{ident}-domains", "pass@1 by domain", placed, frame)}</div>'
    asked = f"{number(rows[0][1].n)} tasks, " if rows and rows[0][1].n else ""
    how = f'<p class="how">{asked}judged by {esc(exam.metric, 60)}; 95 % intervals, bootstrapped over tasks.</p>'
    beyond = f'<p class="note">{more} more domains are in scores.json.</p>' if more else ""
    return f"<h3>{esc(title)}</h3>{how}{drawn}{table_html(exam)}{beyond}"


def table_html(exam: Exam, before: Exam | None = None) -> str:
    """A row for each score, a column for all tasks and for each domain; the change since `before`, if that is given."""
    chosen, _ = largest([exam], COLUMNS)
    columns = {ALL: exam.scores} | ({name: exam.domains[name] for name in chosen} if len(exam.domains) > 1 else {})
    olds: dict[str, Scores] = {ALL: before.scores} | before.domains if before else {}
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    body = "".join(
        f'<tr><th scope="row">{esc(name, 60)}</th>'
        + "".join(_cell(scores.get(name), _old(olds.get(column, {}), name)) for column, scores in columns.items())
        + "</tr>"
        for name in names[:ROWS]
    )
    counts = {name: a.n for name, scores in columns.items() if (a := main(scores))}
    head = "".join(
        f'<th scope="col">{esc(name, 40)}'
        + (f"<small>{number(counts[name])} tasks</small>" if counts.get(name) else "")
        + "</th>"
        for name in columns
    )
    missing = f'<p class="note">{number(exam.unjudged)} tasks could not be judged.</p>' if exam.unjudged else ""
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">score</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{missing}"
    )


def _old(scores: Scores, name: str) -> Accuracy | None:
    return scores.get(name) or (main(scores) if name == "mean" else None)


def _cell(a: Accuracy | None, before: Accuracy | None) -> str:
    """A share in percent; a score that is none, as it is."""
    if a is None:
        return "<td>–</td>"
    share = all(0 <= value <= 1 for value in (a.mean, *(a.span or ())))
    span = f"{percent(a.span[0])} to {percent(a.span[1])}" if share and a.span else ""
    if a.span and not share:
        span = f"{number(a.span[0])} to {number(a.span[1])}"
    moved = ""
    if before:
        points = a.mean - before.mean
        size = f"{abs(points) * 100:.1f}" if share else number(abs(points))
        moved = f"<small>{'+' if points >= 0 else '−'}{size}</small>"
    return f"<td><b>{percent(a.mean) if share else number(a.mean)}</b>{moved}<small>{span}</small></td>"
