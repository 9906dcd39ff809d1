"""A run directory as values. Knows the files and their faults, and nothing of HTML.

Without metrics, events, answers and a summary that can be read there is no report. Of the rest, which a pipeline writes
beside them, a broken file is left out, and told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlreason.report.scores import Exam, exam
from rlreason.report.text import Passage, passage, real


@dataclass(frozen=True)
class Metrics:
    steps: NDArray[np.int64]  # [S] int64, rising
    columns: dict[str, NDArray[np.float64]]  # name -> [S] float64, NaN where the file has no number
    faults: dict[str, tuple[int, int]]  # name -> (how many steps wrote NaN or infinity, the first of them)

    def get(self, name: str) -> NDArray[np.float64]:
        """The numbers of one metric, without the steps that have none: [≤ S], perhaps empty."""
        column: NDArray[np.float64] = self.columns.get(name, np.empty(0))
        known: NDArray[np.float64] = column[np.isfinite(column)]
        return known


@dataclass(frozen=True)
class Sample:
    text: Passage
    reward: float | None  # None: it could not be judged
    parts: dict[str, float | None]
    length: float | None  # tokens
    truncated: bool
    version: Any
    advantage: float | None


@dataclass(frozen=True)
class Answers:
    """One task's answers at one step."""

    task: str
    prompt: tuple[tuple[str, Passage], ...]  # (role, what it said); a prompt that is no chat has the role ""
    words: frozenset[str]  # of the prompt, to tell which tasks are alike
    answer: Passage
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A whole run, a pipeline, or a stage of one. What no file says is empty, not an error."""

    name: str
    recipe: str
    options: dict[str, Any]  # the recipe as parsed, {} if it does not parse
    summary: dict[str, Any]
    metrics: Metrics
    events: list[dict[str, Any]]
    rollouts: list[tuple[int, Path]]  # (step, its file), in the order of steps
    manifest: dict[str, Any] = field(default_factory=dict)
    exams: list[Exam] = field(default_factory=list)  # held during training, in the order of steps
    scores: Exam | None = None  # of a stage that samples or evaluates
    best: int | None = None  # the step whose weights scored best
    exported: list[tuple[str, int]] = field(default_factory=list)  # (name, bytes) of the files of model/
    card: str = ""  # what model/README.md says
    graph: dict[str, Any] = field(default_factory=dict)  # of a pipeline: its base, and what each stage needs
    faults: list[str] = field(default_factory=list)  # files that were left out, and why
    stages: list[Run] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """train, sample, eval or export."""
        return str(self.manifest.get("kind") or self.options.get("kind") or "train")


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line of a JSON Lines file; nothing if there is no such file.

    A run that is killed leaves half a line at the end, so a broken *last* line is passed over. A broken line anywhere
    else means that the file is not what it seems: ValueError, with file:line.
    """
    if not path.is_file():
        return
    fault = None
    with path.open("rb") as file:
        for at, line in enumerate(file, 1):
            if not line.strip():
                continue
            if fault:
                raise fault
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                fault = ValueError(f"{path}:{at}: this line is not JSON ({error}); repair or remove it, then try again")
                continue
            if isinstance(value, dict):
                yield at, value
            else:
                fault = ValueError(f"{path}:{at}: this line is not a JSON object; repair or remove it, then try again")


def metrics(path: Path) -> Metrics:
    """All steps of a metrics file. Where a resumed run repeats a step, the later line stands for it."""
    rows: dict[int, dict[str, Any]] = {}
    for at, row in objects(path):
        step = real(row.get("step"))
        if step is None or step != int(step) or abs(step) >= 2**53:
            raise ValueError(f"{path}:{at}: 'step' must be a whole number, and is {row.get('step')!r}")
        rows[int(step)] = row
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step] if name != "step")
    columns, faults = {}, {}
    for name in names:
        column = np.array([math.nan if (v := real(rows[s].get(name))) is None else v for s in steps])
        bad = [s for s in np.asarray(steps)[np.isnan(column)] if isinstance(rows[s].get(name), float)]
        if bad:
            faults[name] = (len(bad), int(bad[0]))
        if np.isfinite(column).any() or bad:
            columns[name] = column
    return Metrics(np.array(steps, dtype=np.int64), columns, faults)


def answers(path: Path) -> list[Answers]:
    """The tasks of one step's rollout file, in the order of their first answer."""
    groups: dict[str, Answers] = {}
    for _, row in objects(path):
        prompt = row.get("prompt")
        task = str(row.get("task", ""))[:200] or str(prompt)[:200]
        if task not in groups:
            groups[task] = Answers(task, _turns(prompt), _words(prompt), passage(row.get("answer"), 200, 300, 100))
        parts = row.get("parts")
        groups[task].samples.append(
            Sample(
                text=passage(row.get("text")),
                reward=real(row.get("reward")),
                parts={str(k): real(v) for k, v in parts.items()} if isinstance(parts, dict) else {},
                length=real(row.get("length")),
                truncated=row.get("truncated") is True,
                version=row.get("version"),
                advantage=real(row.get("advantage")),
            )
        )
    return list(groups.values())


def read_run(path: Path) -> Run:
    """Everything that a run directory says, with its stages if it is a pipeline's and has no metrics of its own."""
    path = Path(path).resolve()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such run directory")
    alone = _one(path)
    if (path / "metrics.jsonl").is_file() or (path / "manifest.json").is_file():
        return alone
    folders = [
        child for child in path.iterdir() if any((child / file).is_file() for file in ("metrics.jsonl", "manifest.json"))
    ]
    stages = alone.options.get("stages")
    order = [str(name) for name in stages] if isinstance(stages, dict) else []
    place = {name: at for at, name in enumerate(order)}
    folders.sort(key=lambda child: (place.get(child.name, len(order)), _began(child), child.name))
    alone.stages.extend(_one(child) for child in folders)
    return alone


def _one(path: Path) -> Run:
    recipe = path / "recipe.yaml"
    text = recipe.read_text("utf-8", errors="replace") if recipe.is_file() else ""
    files = [(int(m[1]), p) for p in path.glob("rollouts/step-*.jsonl") if (m := re.search(r"-(\d+)\.jsonl$", p.name))]
    faults: list[str] = []
    model = path / "model"
    card = model / "README.md"
    manifest = _record(path / "manifest.json", faults)
    return Run(
        name=path.name,
        recipe=text,
        options=_options(text),
        summary=_summary(path / "summary.json"),
        metrics=metrics(path / "metrics.jsonl"),
        events=[event for _, event in objects(path / "events.jsonl")],
        rollouts=sorted(files),
        manifest=manifest,
        exams=_exams(path / "evaluations", faults),
        scores=_exam(path / "scores.json", faults),
        best=_best(path / "weights" / "best"),
        exported=sorted((p.name, p.stat().st_size) for p in model.glob("*") if p.is_file()) if card.is_file() else [],
        card=card.read_text("utf-8", errors="replace") if card.is_file() else "",
        graph=_record(path / "pipeline.json", faults),
        faults=faults,
    )


def _exams(folder: Path, faults: list[str]) -> list[Exam]:
    """One for each step: that after training stands for its step's own."""
    held: dict[int, Exam] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: (path.stem == "after", path.name)):
        if one := _exam(path, faults):
            held[one.step] = one
    return [held[step] for step in sorted(held)]


def _exam(path: Path, faults: list[str]) -> Exam | None:
    said = _record(path, faults)
    if said and not (one := exam(said, path.stem)):
        faults.append(f"{_place(path)} has no scores, and was left out")
    return one if said else None


def _best(link: Path) -> int | None:
    """weights/best leads to the folder v<step>, if training wrote one; elsewhere, in a copy, it may be a folder itself."""
    match = re.fullmatch(r"v(\d+)", link.readlink().name) if link.is_symlink() else None
    return int(match[1]) if match else None


def _record(path: Path, faults: list[str]) -> dict[str, Any]:
    """A JSON object; {} where there is none, or none that can be read, which is then told in `faults`."""
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        said = error
    if isinstance(said, dict):
        return said
    why = f"is not JSON ({said})" if isinstance(said, Exception) else "is not a JSON object"
    faults.append(f"{_place(path)} {why}, and was left out")
    return {}


def _place(path: Path) -> str:
    return f"evaluations/{path.name}" if path.parent.name == "evaluations" else path.name


def _options(recipe: str) -> dict[str, Any]:
    """The recipe as a mapping, to name the model and to order the stages; the page shows its text in any case."""
    import yaml  # here, because it is slow to load and a run without a recipe does not need it

    try:
        options = yaml.safe_load(recipe)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


def _summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: this file is not JSON ({error}); remove it, then try again") from None
    if not isinstance(summary, dict):
        raise ValueError(f"{path}: this file is not a JSON object; remove it, then try again")
    return summary


def _began(path: Path) -> float:
    """When a stage began: its first event, or else the age of its files."""
    for _, event in objects(path / "events.jsonl"):
        if (at := real(event.get("at"))) is not None:
            return at
    files = (path / name for name in ("summary.json", "metrics.jsonl", "manifest.json"))
    return next(file for file in files if file.is_file()).stat().st_mtime


def _turns(prompt: Any) -> tuple[tuple[str, Passage], ...]:
    if isinstance(prompt, list) and all(isinstance(turn, dict) for turn in prompt):
        return tuple((str(turn.get("role", ""))[:40], passage(_said(turn), 350, 800, 250)) for turn in prompt[:12])
    return (("", passage(prompt, 350, 800, 250)),)


def _said(turn: dict[str, Any]) -> str:
    content = turn.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _words(prompt: Any) -> frozenset[str]:
    """The words of a prompt's end, with every digit the same: sums of equally many digits are alike."""
    text = str(prompt)[-2000:].lower()
    return frozenset(re.findall(r"\w+|[^\w\s]", re.sub(r"\d", "0", text)))
