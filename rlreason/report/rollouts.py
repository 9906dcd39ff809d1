"""What the policy wrote, early beside late: which steps and tasks are shown, and how. Opens those files only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlreason.report.read import Answers, Sample, answers
from rlreason.report.text import esc, number, passage_html, signed

STEPS = 12  # shown of a run, evenly spaced
ROWS = 4  # tasks
SAMPLES = 4  # answers to a task at a step,
OPEN = 2  # of which so many are not folded


@dataclass(frozen=True)
class Sides:
    """Rows of like tasks across the shown steps; the first and the last of those stand side by side at first."""

    steps: list[int]
    early: int
    late: int
    rows: list[dict[int, Answers]]  # step -> that row's task then; every row has the early step
    files: int  # how many steps the run has written down


def sides(files: list[tuple[int, Path]]) -> Sides | None:
    """Rows whose early and late task are the same if the run has such, else alike in words; None: no answers."""
    if not files:
        return None
    last = len(files) - 1
    wanted = {round(i * last / (STEPS - 1)) for i in range(STEPS)}
    near_end = set(range(max(0, len(files) - 8), len(files))) if len(files) > STEPS else set()
    found = {files[i][0]: tasks for i in sorted(wanted | near_end) if (tasks := answers(files[i][1]))}
    if not found:
        return None
    early = min(found)
    known = {task.task for task in found[early]}
    ends = {files[i][0] for i in near_end} & found.keys() or {max(found)}
    late = max(ends, key=lambda step: (len(known & {task.task for task in found[step]}), step))
    steps = sorted(step for step in found if step in {early, late} | {files[i][0] for i in wanted})

    def worth(task: Answers) -> tuple[bool, int]:
        there = [step for step in steps if any(other.task == task.task for other in found[step])]
        return (late in there, len(there))

    anchors = sorted(found[early], key=worth, reverse=True)[:ROWS]
    columns = {step: _matched(anchors, found[step]) for step in steps}
    rows = [{step: task for step, column in columns.items() if (task := column[at])} for at in range(len(anchors))]
    return Sides(steps, early, late, rows, len(files))


def _matched(anchors: list[Answers], tasks: list[Answers]) -> list[Answers | None]:
    """For each anchor the same task, or of those left the one with the most words in common; None when none is left."""
    same = {task.task: task for task in tasks}
    chosen = [same.get(anchor.task) for anchor in anchors]
    left = [task for task in tasks[:256] if task.task not in {c.task for c in chosen if c}]
    for at, anchor in enumerate(anchors):
        if chosen[at] is None and left:
            best = max(range(len(left)), key=lambda i: _alike(anchor, left[i]))
            chosen[at] = left.pop(best)
    return chosen


def _alike(a: Answers, b: Answers) -> float:
    """Jaccard similarity of the prompts' words."""
    return len(a.words & b.words) / (len(a.words | b.words) or 1)


def rollouts_html(shown: Sides, budget: int) -> str:
    """The rows as HTML of at most about `budget` bytes: early and late first, then the steps between, then no more."""
    rewards = [s.reward for row in shown.rows for cell in row.values() for s in cell.samples if s.reward is not None]
    scale = (min(rewards, default=0.0), max(rewards, default=1.0))
    first = list(dict.fromkeys((shown.early, shown.late)))
    cells: dict[tuple[int, int], str] = {}
    left_out = 0
    for step in (*first, *(s for s in shown.steps if s not in first)):
        for at, row in enumerate(shown.rows):
            if step in row:
                cell = _cell(row[step], step, scale, asked=row[shown.early])
                budget -= len(cell.encode())
                if budget >= 0:
                    cells[at, step] = cell
                else:
                    left_out += 1
    body = "".join(_row(at, row, shown, cells) for at, row in enumerate(shown.rows))
    notes = [
        f"{len(shown.steps)} of {shown.files:,} recorded steps, up to {ROWS} tasks of each and the first {SAMPLES} answers "
        "to a task; long texts are folded, and cut where it says so. The rest is in rollouts/."
    ]
    if left_out:
        notes.append(f"{left_out} tasks were left out to keep this file small.")
    said = "".join(f'<p class="note">{esc(note)}</p>' for note in notes)
    options = "".join(f'<option value="{step}">step {step:,}</option>' for step in shown.steps)
    return (
        f'<div class="rollouts" data-early="{shown.early}" data-late="{shown.late}">'
        '<form class="picker" hidden aria-label="Which answers to show">'
        f'<label>Left <select name="left">{options}</select></label>'
        f'<label>Right <select name="right">{options}</select></label>'
        '<label>Answers <select name="kind"><option value="">all</option>'
        '<option value="above">above their mean reward</option><option value="below">below their mean reward</option>'
        '<option value="cut">cut off at the token limit</option><option value="unjudged">not judged</option>'
        "</select></label>"
        '<label class="find">Containing <input type="search" name="find" autocomplete="off"></label>'
        '<output aria-live="polite"></output></form>'
        f"{body}{said}</div>"
    )


def _row(at: int, row: dict[int, Answers], shown: Sides, cells: dict[tuple[int, int], str]) -> str:
    task = row[shown.early]
    left = cells.get((at, shown.early), "")
    right = cells.get((at, shown.late), "") if shown.late != shown.early else ""
    between = [cells[at, s] for s in shown.steps if s not in (shown.early, shown.late) and (at, s) in cells]
    more = f"<details><summary>{len(between)} steps between</summary>{''.join(between)}</details>" if between else ""
    return (
        f'<section class="row" aria-label="Task {esc(task.task, 60)}">{_prompt(task)}'
        f'<div class="pair"><div class="side">{left}</div><div class="side">{right}</div></div>'
        f'<div class="between">{more}</div></section>'
    )


def _prompt(task: Answers) -> str:
    turns = "".join(f'<div class="turn">{_role(role)}{passage_html(said)}</div>' for role, said in task.prompt)
    answer = f'<div class="answer"><b>answer</b>{passage_html(task.answer)}</div>' if task.answer.head else ""
    return f'<div class="prompt"><p class="who">Task {esc(task.task, 60)}</p>{turns}{answer}</div>'


def _role(role: str) -> str:
    return f"<b>{esc(role)}</b>" if role else ""


def _cell(task: Answers, step: int, scale: tuple[float, float], asked: Answers) -> str:
    """One task's answers at one step, with its own prompt where that is not the row's."""
    judged = [s.reward for s in task.samples if s.reward is not None]
    mean = sum(judged) / len(judged) if judged else None
    said = f"mean reward {number(mean)}" if judged else "none judged"
    other = f'<div class="other">{_prompt(task)}</div>' if task.task != asked.task else ""
    made = [_sample(sample, mean, scale) for sample in task.samples[:SAMPLES]]
    shown, folded = "".join(made[:OPEN]), "".join(made[OPEN:])
    summary = f"<summary>{len(made) - OPEN} more, of {len(task.samples)} answers</summary>"
    more = f"<details>{summary}{folded}</details>" if folded else ""
    return (
        f'<article data-step="{step}"><h4>Step {step:,}<small>{said}</small>{_strip(task.samples, scale)}</h4>'
        f"{other}{shown}{more}</article>"
    )


def _strip(samples: list[Sample], scale: tuple[float, float]) -> str:
    """All rewards of a task as a row of squares, the fuller the higher."""
    if len(samples) < 2:
        return ""
    squares = []
    for at, sample in enumerate(samples[:32]):
        if sample.reward is None:
            squares.append(f'<rect class="unjudged" x="{at * 11 + 1}" y="1" width="8" height="8"/>')
        else:
            tall = max(1, round(9 * _part(sample.reward, scale)))
            squares.append(f'<rect x="{at * 11}" y="{10 - tall}" width="9" height="{tall}"/>')
    told = ", ".join(number(sample.reward) for sample in samples[:32])
    width = 11 * len(squares)
    return (
        f'<svg class="strip" role="img" aria-label="Rewards: {told}" width="{width}" height="11">'
        f'<line x1="0" x2="{width - 2}" y1="10.5" y2="10.5"/>{"".join(squares)}</svg>'
    )


def _sample(sample: Sample, mean: float | None, scale: tuple[float, float]) -> str:
    kinds = ["cut"] if sample.truncated else []
    if sample.reward is None:
        kinds.append("unjudged")
        score = '<b class="none">not judged</b>'
    else:
        if mean is not None and sample.reward != mean:
            kinds.append("above" if sample.reward > mean else "below")
        full = 100 * _part(sample.reward, scale)
        score = f'<b>{number(sample.reward)}</b><span class="bar"><i style="width:{full:.0f}%"></i></span>'
    parts = "".join(f"<span>{esc(name, 40)} {number(value)}</span>" for name, value in list(sample.parts.items())[:8])
    facts = [
        f"{number(sample.length)} tokens" if sample.length is not None else "",
        "cut off" if sample.truncated else "",
        f"weights v{esc(sample.version, 20)}" if sample.version is not None else "",
        f"advantage {signed(sample.advantage)}" if sample.advantage is not None else "",
    ]
    return (
        f'<div class="sample" data-is="{" ".join(kinds)}"><p class="score">{score}{parts}'
        f"<small>{' · '.join(fact for fact in facts if fact)}</small></p>{passage_html(sample.text)}</div>"
    )


def _part(reward: float, scale: tuple[float, float]) -> float:
    low, high = min(scale[0], 0.0), scale[1]
    return (reward - low) / (high - low) if high > low else 0.0
