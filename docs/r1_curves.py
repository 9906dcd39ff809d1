"""Draw the figures of docs/r1.md from a run of recipes/r1/mini.yaml: `python docs/r1_curves.py RUN [CONTROL …]`.

Each is one SVG without script or reference, on a light ground of its own, so that it can be read on any page. The stages
of further runs, such as mini-control.yaml's, are rows of the ladder. The same runs give the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlreason.report.curves import Frame, axis, curve, whole_ticks
from rlreason.report.graph import takes
from rlreason.report.read import Run, read_run
from rlreason.report.scores import Accuracy, Exam, main
from rlreason.report.text import esc, number, percent

OUT = Path(__file__).parent / "r1"
WIDE = 760  # of every figure, in its own units, which are pixels where the page has room
PAPER, INK, SOFT, LINE, ACCENT = "#fbfaf8", "#22262b", "#5c636c", "#e3e1dc", "#1f6b8f"
COLOURS = ("#1f6b8f", "#c2701c", "#3f8f5f", "#a1508c", "#7a6fc0", "#8a8172", "#b0483f", "#5b7f95")  # the report's
STYLE = (
    f"text{{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;fill:{SOFT}}}"
    f".b{{font-weight:600;fill:{INK}}}.i{{fill:{INK}}}.g{{stroke:{LINE}}}.l{{fill:none;stroke-width:2;stroke-linejoin:round}}"
    ".r{fill:none;stroke-width:3;stroke-linecap:round;opacity:.28}.e{stroke-width:1.5;opacity:.65}.t{opacity:.5;stroke-width:1.5}"
)
SHARE = Frame(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))


@dataclass(frozen=True)
class Line:
    """One series of a panel: values over steps, with their intervals or the raw values behind a moving average."""

    name: str
    steps: np.ndarray  # [S]
    values: np.ndarray  # [S]
    low: np.ndarray  # [S]
    high: np.ndarray  # [S]
    exact: bool  # measured at these few steps; else an average of all


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    wide: float
    tall: float

    def x(self, part: float) -> float:
        return round(self.left + part * self.wide, 1)

    def y(self, part: float) -> float:
        return round(self.top + (1 - part) * self.tall, 1)


# ---- figures ----


def ladder(runs: Sequence[Run]) -> str:
    """Accuracy before and after every stage that trains, and by every examination: of all tasks, and of each domain."""
    found = [(stage, _label(stage, run), *_ends(stage)) for run in runs for stage in run.stages]
    rows = [(label, before, after) for stage, label, before, after in found if after and stage.kind in ("train", "eval")]
    domains = sorted({name for _, before, after in rows for name in after.domains})
    body, top = [], 42.0
    for domain in ["", *(domains if len(domains) > 1 else [])]:
        of = [(label, _of(before, domain), _of(after, domain)) for label, before, after in rows]
        known = [row for row in of if row[2]]
        box = Box(150, top + 24, WIDE - 150 - 190, 27 * len(known))
        title = f"{domain} alone" if domain else "all of a stage's own held-out tasks"
        body += [f'<text class="b" x="24" y="{top + 8}">{esc(title, 60)}</text>', _grid(box, SHARE)]
        body += [_rung(box, at, *row) for at, row in enumerate(known)]
        top += box.tall + 78
    key = (
        f'<circle cx="30" cy="20" r="4.5" fill="{PAPER}" stroke="{SOFT}" stroke-width="2"/><text x="42" y="24">before the stage'
        f'</text><circle cx="150" cy="20" r="5" fill="{ACCENT}"/><text x="162" y="24">after it, or by an examination; bars are '
        "95 % intervals</text>"
    )
    return _figure("Accuracy, stage by stage", "".join([key, *body]), top - 20)


def reward(stages: Sequence[Run]) -> str:
    """The mean reward of a step's answers, and its parts."""
    names = ["reward", *_common(stages, "reward/")]
    panels = [[line for name in names if (line := _average(stage, name))] for stage in stages]
    return _panels("Reward and its parts, per step", stages, [("", panels)], names)


def held_out(stages: Sequence[Run]) -> str:
    """Accuracy on held-out tasks, of all and by domain."""
    domains = sorted({name for stage in stages for exam in stage.exams for name in exam.domains})
    names = ["all", *(domains if len(domains) > 1 else [])]
    panels = []
    for stage in stages:
        alone = len({name for exam in stage.exams for name in exam.domains}) < 2  # then "all" is that domain
        of = [n for n in names if not (alone and n == "all" and len(names) > 1)]
        panels.append([line for name in of if (line := _measured(stage, name))])
    return _panels("Held-out accuracy over the steps, with 95 % intervals", stages, [("", panels)], names, share=True)


def behaviour(stages: Sequence[Run]) -> str:
    """What else changes: the alphabet, the length of answers, and the distance to the reference."""
    rows = []
    for title, name in (
        ("language consistency", "reward/language"),
        ("answer length, tokens", "length"),
        ("KL to the reference, nats per token", "reference_kl"),
    ):
        drawn = [[line] if (line := _average(stage, name)) else [] for stage in stages]
        if any(drawn):
            rows.append((title, drawn))
    return _panels("Language, length and distance to the reference, per step", stages, rows, [], tall=120)


# ---- values ----


def reinforced(run: Run) -> list[Run]:
    """The stages whose policy answers itself and learns from it."""
    return [
        stage
        for stage in run.stages
        if stage.kind == "train" and stage.options.get("algorithm", {}).get("answers") == "policy" and len(stage.metrics.steps)
    ]


def _label(stage: Run, run: Run) -> str:
    of = [other for other, options in takes(stage.name, stage, run).items() if "model" in options]
    return f"{stage.name}, of {of[0]}" if stage.kind == "eval" and of else stage.name


def _ends(stage: Run) -> tuple[Exam | None, Exam | None]:
    if stage.kind == "eval":
        return None, stage.scores
    exams = stage.exams
    return (exams[0] if exams and exams[0].when == "before" else None), exams[-1] if exams else None


def _of(exam: Exam | None, domain: str) -> Accuracy | None:
    """By the metric's mean, as training has it, so that examinations compare with it."""
    if exam is None:
        return None
    return main(exam.domains.get(domain, {})) if domain else main(exam.scores) if exam.when == "scores" else exam.accuracy


def _common(stages: Sequence[Run], prefix: str) -> list[str]:
    return list(dict.fromkeys(n for stage in stages for n in stage.metrics.columns if n.startswith(prefix)))[: len(COLOURS) - 1]


def _average(stage: Run, name: str) -> Line | None:
    c = curve(stage.metrics, name, 120)
    return Line(name, c.steps, c.smooth, c.low, c.high, exact=False) if c else None


def _measured(stage: Run, name: str) -> Line | None:
    held = [(exam.step, a) for exam in stage.exams if (a := _of(exam, "" if name == "all" else name))]
    if not held:
        return None
    steps, scores = zip(*held, strict=True)
    low, high = np.array([a.span or (a.mean, a.mean) for a in scores]).T
    return Line(name, np.array(steps), np.array([a.mean for a in scores]), low, high, exact=True)


# ---- drawing ----


def _panels(
    title: str,
    stages: Sequence[Run],
    rows: Sequence[tuple[str, Sequence[Sequence[Line]]]],
    names: Sequence[str],
    share: bool = False,
    tall: int = 210,
) -> str:
    """A column for each stage, a row for each (title, its stages' lines); panels of a row have one axis."""
    key, top = _key(names)
    across = (WIDE - 24 - 64 * len(stages)) / max(1, len(stages))
    body = [key]
    for at, (said, panels) in enumerate(rows):
        lines = [line for panel in panels for line in panel]
        if not lines:
            continue
        frame = SHARE if share else _frame(lines)
        for column, (stage, panel) in enumerate(zip(stages, panels, strict=True)):
            box = Box(56 + column * (across + 64), top + 34, across, tall)
            head = f'<tspan class="b">{esc(stage.name, 30)}</tspan>' if at == 0 or not said else ""
            body.append(f'<text x="{box.left}" y="{top + 16}">{head}{"  " * bool(head and said)}{esc(said)}</text>')
            body.append(_panel(box, frame, panel, names, share))
        top += tall + 78
    return _figure(title, "".join(body), top + 2)


def _panel(box: Box, frame: Frame, lines: Sequence[Line], names: Sequence[str], share: bool) -> str:
    out = []
    for tick in frame.ticks:
        y = box.y(float(frame.place(np.array([tick]))[0]))
        said = f"{tick * 100:.3g} %" if share else number(tick)
        out.append(f'<line class="g" x1="{box.left}" x2="{box.x(1)}" y1="{y}" y2="{y}"/>')
        out.append(f'<text x="{box.left - 10}" y="{y + 4}" text-anchor="end">{said}</text>')
    if not lines:
        return "".join(out)
    first, last = min(int(line.steps[0]) for line in lines), max(int(line.steps[-1]) for line in lines)
    for step in whole_ticks(first, last, 4):
        x = box.x((step - first) / (last - first) if last > first else 0.5)
        out.append(f'<text x="{x}" y="{box.y(0) + 20}" text-anchor="middle">{step:,}</text>')
    out.append(f'<text x="{box.x(1)}" y="{box.y(0) + 36}" text-anchor="end">step</text>')
    for at, line in enumerate(lines):
        colour = COLOURS[names.index(line.name) if line.name in names else 0]
        xs = [box.x((step - first) / (last - first) if last > first else 0.5) for step in line.steps.tolist()]
        values, low, high = ([box.y(part) for part in frame.place(v).tolist()] for v in (line.values, line.low, line.high))
        if line.exact:
            xs = [round(x + (at - (len(lines) - 1) / 2) * 3, 1) for x in xs]  # side by side
            bars = "".join(f"M{x},{a}V{b}" for x, a, b in zip(xs, low, high, strict=True))
            dots = "".join(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' for x, y in zip(xs, values, strict=True))
            path = f'<path class="l t" stroke="{colour}" d="M{_points(xs, values)}"/>'
            out.append(f'{path}<path class="e" stroke="{colour}" d="{bars}"/>{dots}')
        else:
            raw = "".join(f"M{x},{a}h0" if a == b else f"M{x},{a}V{b}" for x, a, b in zip(xs, low, high, strict=True))
            out.append(f'<path class="r" stroke="{colour}" d="{raw}"/>')
            out.append(f'<path class="l" stroke="{colour}" d="M{_points(xs, values)}"/>')
    return "".join(out)


def _key(names: Sequence[str]) -> tuple[str, float]:
    """(what each colour stands for, where the rest begins)."""
    out, x, y = [], 24.0, 24
    for at, name in enumerate(names):
        said = name.removeprefix("reward/")
        wide = 34 + 6.7 * len(said)
        if x + wide > WIDE - 24:
            x, y = 24.0, y + 20
        out.append(f'<rect x="{x:.1f}" y="{y - 6}" width="12" height="3" fill="{COLOURS[at]}"/>')
        out.append(f'<text class="i" x="{x + 18:.1f}" y="{y}">{esc(said, 40)}</text>')
        x += wide
    return "".join(out), y + 8 if names else 10.0


def _grid(box: Box, frame: Frame) -> str:
    out = []
    for tick in frame.ticks:
        x = box.x(float(frame.place(np.array([tick]))[0]))
        out.append(f'<line class="g" x1="{x}" x2="{x}" y1="{box.top}" y2="{box.top + box.tall}"/>')
        out.append(f'<text x="{x}" y="{box.top + box.tall + 17}" text-anchor="middle">{tick * 100:.3g} %</text>')
    return "".join(out)


def _rung(box: Box, at: int, label: str, before: Accuracy | None, after: Accuracy | None) -> str:
    """A row: hollow before, full after, each on its interval."""
    y = box.top + 27 * at + 13.5
    out = [f'<text class="i" x="{box.left - 14}" y="{y + 4}" text-anchor="end">{esc(label, 24)}</text>']
    out.append(f'<line class="g" x1="{box.left}" x2="{box.x(1)}" y1="{y}" y2="{y}"/>')
    for a, colour, fill, off in ((before, SOFT, PAPER, -4), (after, ACCENT, ACCENT, 4 if before else 0)):
        if a:
            low, high = (box.x(min(1.0, max(0.0, edge))) for edge in (a.span or (a.mean, a.mean)))
            wide = round(high - low, 1)
            out.append(f'<rect x="{low}" y="{y + off - 3}" width="{wide}" height="6" fill="{colour}" opacity=".35"/>')
            x = box.x(min(1.0, max(0.0, a.mean)))
            out.append(f'<circle cx="{x}" cy="{y + off}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="2"/>')
    told = " → ".join(percent(a.mean) for a in (before, after) if a)
    tasks = f", n = {number(after.n)}" if after and after.n else ""
    out.append(f'<text x="{box.x(1) + 16}" y="{y + 4}"><tspan class="b">{told}</tspan>{tasks}</text>')
    return "".join(out)


def _frame(lines: Sequence[Line]) -> Frame:
    low, high = min(float(line.low.min()) for line in lines), max(float(line.high.max()) for line in lines)
    low = 0.0 if low > -0.01 * high else low  # from zero, lest noise look like a change
    return axis(low, high) if high > low else axis(low - 0.5, high + 0.5)


def _points(xs: Sequence[float], ys: Sequence[float]) -> str:
    return " ".join(f"{x},{y}" for x, y in zip(xs, ys, strict=True))


def _figure(title: str, body: str, tall: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {tall:.0f}" width="{WIDE}" height="{tall:.0f}" '
        f'role="img" aria-labelledby="t"><title id="t">{esc(title)}</title><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>{body}</svg>\n'
    )


def draw(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the figures into `out`; returns their paths."""
    learning = reinforced(runs[0])
    figures = {"ladder": ladder(runs)}
    if learning:
        figures |= {"reward": reward(learning), "held-out": held_out(learning), "behaviour": behaviour(learning)}
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, svg in figures.items():
        paths.append(out / f"{name}.svg")
        paths[-1].write_text(svg, encoding="utf-8")
    return paths


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for path in draw([read_run(Path(run)) for run in sys.argv[1:]], OUT):
        print(f"{path}: {path.stat().st_size:,} bytes")
