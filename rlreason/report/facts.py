"""What a run comes to, in a few values: from its summary where it wrote one, else from its metrics so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlreason.report.read import Run
from rlreason.report.scores import Accuracy, score
from rlreason.report.text import count, duration, number, percent, real, size

SECTIONS = ("tasks", "loop", "algorithm", "eval")


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    note: str = ""
    tone: str = ""  # good, fair or bad


def accuracy(summary: dict[str, Any], which: str) -> Accuracy | None:
    """`which` is before or after. None where it was not measured, or not yet."""
    return score(summary.get(f"accuracy_{which}"))


def change(before: Accuracy, after: Accuracy) -> str:
    """The difference in words, and whether chance could explain it at a glance."""
    points = (after.mean - before.mean) * 100
    sign = "+" if points >= 0 else "−"
    said = f"{sign}{abs(points):.1f} points"
    if not before.span or not after.span:
        return f"{said}."
    apart = before.span[1] < after.span[0] or after.span[1] < before.span[0]
    return said + (". The 95 % intervals do not overlap." if apart else ". The 95 % intervals overlap.")


def seconds(run: Run) -> float | None:
    if (value := real(run.summary.get("seconds"))) is not None:
        return value
    if run.stages:
        known = [s for stage in run.stages if (s := seconds(stage)) is not None]
        return sum(known) if known else None
    elapsed, steps = run.metrics.get("time/elapsed"), run.metrics.get("time/step")
    return float(elapsed.max()) if len(elapsed) else float(steps.sum()) if len(steps) else None


def tokens(run: Run) -> float | None:
    if (value := real(run.summary.get("tokens"))) is not None:
        return value
    parts = [tokens(stage) for stage in run.stages] if run.stages else run.metrics.get("tokens").tolist()
    known = [part for part in parts if part is not None]
    return float(sum(known)) if known else None


def steps(run: Run) -> float | None:
    if (value := real(run.summary.get("steps"))) is not None:
        return value
    if run.stages:
        return float(sum(steps(stage) or 0 for stage in run.stages))
    return float(run.metrics.steps[-1]) if len(run.metrics.steps) else None


def peak(run: Run) -> float | None:
    known = [p for r in (run, *run.stages) if (p := real(r.summary.get("peak_rss_bytes"))) is not None]
    return max(known) if known else None


def gap(run: Run) -> float | None:
    """The largest policy_gap of the run: the summary's, or that of its metrics if they have a larger one."""
    known = [g for r in (run, *run.stages) if (g := real(r.summary.get("policy_gap_max"))) is not None]
    known += [float(column.max()) for r in (run, *run.stages) if len(column := r.metrics.get("policy_gap"))]
    return max(known) if known else None


def lag(run: Run) -> float:
    return max((float(c.max()) for r in (run, *run.stages) if len(c := r.metrics.get("lag"))), default=0.0)


def verdict(largest: float, versions: float) -> tuple[str, str]:
    """(what a largest policy_gap says, its tone), when samples were up to `versions` weight versions old.

    Below 1e-5 only the sum order of floating point differs. Engines that compute in other precisions differ by up to
    about 1e-2; on-policy, more than that has been a fault every time that we looked.
    """
    if largest < 1e-5:
        return "on-policy", "good"
    if versions > 0:
        return f"off-policy by up to {number(versions)} version{'s'[: int(versions > 1)]}", ""
    if largest < 1e-2:
        return "numerical mismatch of the engines", "fair"
    return "too large for on-policy: look into it", "bad"


def tenths(column: np.ndarray) -> tuple[float, float] | None:
    """The means of a curve's first and last tenth: where it came from, and where it went."""
    if not len(column):
        return None
    part = max(1, len(column) // 10)
    return float(column[:part].mean()), float(column[-part:].mean())


def tiles(run: Run) -> list[Tile]:
    """The headline's numbers, those only that the run has."""
    made = []
    trains = run.kind == "train"
    for which in ("before", "after"):
        if a := accuracy(run.summary, which):
            made.append(Tile(f"Accuracy {which}" if trains else "Accuracy", percent(a.mean), a.interval))
    if (kept := real(run.summary.get("samples"))) is not None:
        asked = kept + sum(left_out(run.summary).values())
        made.append(Tile("Answers kept", number(kept), f"of {number(asked)}"))
    for name, key in (("Reward", "reward"), ("Loss", "loss")) if trains else ():
        if not (name == "Loss" and made and made[-1].name == "Reward") and (ends := tenths(run.metrics.get(key))):
            made.append(Tile(name, f"{number(ends[0])} → {number(ends[1])}", "first and last tenth of the steps"))
    if (value := steps(run)) is not None and (trains or run.kind == "sample"):
        planned = _planned(run) if trains else None
        short = planned is not None and value < planned
        made.append(Tile("Steps" if trains else "Waves", number(value), f"of {number(planned)} planned" if short else ""))
    if (value := seconds(run)) is not None:
        first = real(run.summary.get("seconds_to_first_step")) if trains else None
        made.append(Tile("Duration", duration(value), "" if first is None else f"first step after {duration(first)}"))
    if (value := tokens(run)) is not None and (trains or value):
        rate = run.metrics.get("time/tokens_per_second")
        made.append(Tile("Tokens", count(value), f"{count(np.median(rate))} a second, median" if len(rate) else ""))
    if (value := peak(run)) is not None:
        made.append(Tile("Peak memory", size(value), "resident, on the host"))
    if (value := gap(run)) is not None:
        made.append(Tile("Largest policy gap", number(value), *verdict(value, lag(run))))
    return made


def left_out(summary: dict[str, Any]) -> dict[str, float]:
    """Why a stage that samples left answers out -> how many, the most first; {} where the summary does not say."""
    said = summary.get("left_out")
    known = {str(name): n for name, value in said.items() if (n := real(value))} if isinstance(said, dict) else {}
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def subtitle(run: Run) -> str:
    """One line on what was done, with what, on what and how, as far as the recipe says."""
    o = run.options
    tasks, loop, algorithm, exam = (section if isinstance(section := o.get(name), dict) else {} for name in SECTIONS)
    model = _placed(run, "model", o.get("model"))
    said: list[Any] = [] if run.kind == "train" else [run.kind]
    said.append(model if isinstance(model, str) else "a model from scratch" if isinstance(model, dict) else None)
    if run.kind == "export":
        return " · ".join(str(part) for part in said if part)
    mixture = tasks.get("mixture")
    said.append(_placed(run, "tasks.path", tasks.get("path")) or tasks.get("generate"))
    said.append(" + ".join(map(str, mixture)) if isinstance(mixture, dict) else None)
    if run.kind == "eval":
        said += [f"{exam[key]} {word}" for key, word in (("tasks", "tasks"), ("samples", "answers each")) if exam.get(key)]
    recorded = algorithm.get("answers") == "recorded"
    if run.kind == "train":
        how = (algorithm.get(name) for name in ("preset", "advantage", "loss"))
        said += ["recorded answers", algorithm.get("loss")] if recorded else how
    if loop.get("groups") and run.kind != "eval":
        each = f" × {loop.get('samples')} answers" if loop.get("samples") and not recorded else ""
        said.append(f"{loop['groups']} tasks{each} a {'step' if run.kind == 'train' else 'wave'}")
        if loop.get("max_lag") and not recorded and run.kind == "train":
            said.append(f"max_lag {loop['max_lag']}")
    return " · ".join(str(part) for part in said if part)


def _placed(run: Run, option: str, value: Any) -> Any:
    """A path within the pipeline without the pipeline's own, as the manifest has it: $cold/weights/last."""
    recipe = run.manifest.get("recipe")
    said = recipe.get(option) if isinstance(recipe, dict) else None
    return said[1:] if isinstance(said, str) and said.startswith("$") else value


def _planned(run: Run) -> float | None:
    loop = run.options.get("loop")
    return real(loop.get("steps")) if isinstance(loop, dict) else None
