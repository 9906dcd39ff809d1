"""The report: what it shows is what the files say, whatever they say, and it needs nothing but itself."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rlreason.report import write
from rlreason.report.curves import curve, ema, frame
from rlreason.report.facts import verdict
from rlreason.report.product import headline
from rlreason.report.read import metrics, objects, read_run
from rlreason.report.rollouts import sides
from rlreason.report.text import count, duration, esc, number, passage

EVIL = "<script>alert(1)</script><!-- </title></style>\"' & <img src=http://evil.example/x onerror=alert(1)>"
VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """A page taken apart: its tags with their attributes, its text, and whether every tag is closed in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_bytes().decode("utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in attributes.items())]


def lines(path: Path, rows: list[dict], end: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)


def answer(step: int, task: str, text: str = "4", **more: object) -> dict:
    return {
        "step": step,
        "task": task,
        "prompt": f"What is {task} + 2?",
        "answer": "4",
        "text": text,
        "reward": 1.0,
        "parts": {"exact": 1.0},
        "length": 3,
        "truncated": False,
        "version": step - 1,
        "advantage": 0.25,
    } | more


def steps(n: int) -> list[dict]:
    return [
        {
            "step": s,
            "reward": s / n,
            "reward/exact": s / n / 2,
            "loss": 1 / s,
            "policy_gap": 2e-7 * s,
            "entropy": 1 - s / n,
            "length": 20.0 + s,
            "grad_norm": 0.5 + s % 3,
            "lag": 0,
            "tokens": 100 * s,
            "time/step": 2.0,
            "time/rollout": 1.25,
            "time/train": 0.5,
            "time/elapsed": 2.0 * s,
            "time/tokens_per_second": 50.0 * s,
        }
        for s in range(1, n + 1)
    ]


def a_run(path: Path, n: int = 12, **summary: object) -> Path:
    (path / "rollouts").mkdir(parents=True)
    (path / "recipe.yaml").write_text(
        "model: acme/tiny-1B\ntasks: {path: data/sums.jsonl}\nloop: {steps: 20, groups: 4, samples: 8}\n"
    )
    lines(path / "metrics.jsonl", steps(n))
    for step in range(1, n + 1):
        lines(
            path / "rollouts" / f"step-{step:06d}.jsonl", [answer(step, "2", f"said at {step}"), answer(step, str(step + 10))]
        )
    lines(
        path / "events.jsonl", [{"at": 1_700_000_000.0, "event": "started"}, {"at": 1_700_000_090, "event": "saved", "step": 8}]
    )
    told = {"accuracy_before": {"mean": 0.41, "n": 512, "low": 0.37, "high": 0.45},
            "accuracy_after": {"mean": 0.632, "n": 500, "low": 0.59, "high": 0.674},
            "policy_gap_max": 3.25e-6, "seconds_to_first_step": 41.5, "seconds": 3725, "steps": n, "tokens": 1_234_567,
            "peak_rss_bytes": 3 * 2**30}  # fmt: skip
    (path / "summary.json").write_text(json.dumps(told | summary))
    return path


# ---- the numbers shown are those in the files ----


def test_the_headline_has_the_summary_s_numbers(tmp_path):
    page = Page(write(a_run(tmp_path / "sums")))
    for said in (
        "+22.2 points. The 95 % intervals do not overlap.",
        "Before 41.0 % (37.0 % to 45.0 %), n = 512.",
        "After 63.2 % (59.0 % to 67.4 %), n = 500.",
        "of 20 planned",
        "1 h 02 min",
        "first step after 42 s",
        "1.23 M",
        "3.0 GiB",
        "3.25e-6on-policy",
        "acme/tiny-1B · data/sums.jsonl · 4 tasks × 8 answers a step",
    ):
        assert said in page.text, said


def test_intervals_that_overlap_are_said_to(tmp_path):
    after = {"mean": 0.44, "n": 512, "low": 0.40, "high": 0.48}
    assert "+3.0 points. The 95 % intervals overlap." in Page(write(a_run(tmp_path / "r", accuracy_after=after))).text


def test_the_curves_hold_every_step_s_value_beside_the_average(tmp_path):
    rewards = [0.3, 0.9] * 45  # 90 steps: the average looks back on 3 of them, with weight 1/2
    lines(tmp_path / "metrics.jsonl", [{"step": s, "reward": r, "lag": 0} for s, r in enumerate(rewards, 5)])
    page = Page(write(tmp_path))
    (reward,) = page.all("li", **{"class": "s0"})
    assert json.loads(reward["data-x"]) == list(range(5, 95))
    assert json.loads(reward["data-low"]) == rewards
    assert json.loads(reward["data-mid"])[:3] == [0.3, 0.7, 0.4714]  # 0.3, (0.3 + 2·0.9) / 3, (0.3 + 2·0.9 + 4·0.3) / 7
    assert "Lines are moving averages over about 3 steps; points are single steps." in page.text
    assert "The same at every step: lag 0." in page.text


def test_the_table_of_times_adds_up_and_has_the_medians(tmp_path):
    text = re.sub(r"<[^>]+>", "|", write(a_run(tmp_path / "r")).read_text())
    row = {
        name: re.search(rf"\|{name}\|+([^|]+)\|+([^|]+)\|+([^|]+)\|", text).groups() for name in ("rollout", "train", "other")
    }
    assert row == {"rollout": ("15 s", "62.5 %", "1.25"), "train": ("6 s", "25.0 %", "0.5"), "other": ("3 s", "12.5 %", "0.25")}
    assert re.search(r"tokens a second\|+325\|", text)  # the median of 50, 100, … 600
    assert re.search(r"steps an hour\|+1,800\|", text)


def test_events_are_told_in_order_with_their_details(tmp_path):
    page = Page(write(a_run(tmp_path / "r")))
    assert "started, saved. The first was at 2023-11-14 22:13:20 UTC." in page.text
    assert page.text.index("+0 s") < page.text.index("+90 s") < page.text.index("step=8")


def test_early_and_late_answers_to_the_same_task_stand_side_by_side(tmp_path):
    run = a_run(tmp_path / "r")
    shown = sides(read_run(run).rollouts)
    assert (shown.early, shown.late, shown.steps) == (1, 12, list(range(1, 13)))
    assert [(row[1].task, row[12].task) for row in shown.rows] == [("2", "2"), ("11", "22")]  # the same, then the likest
    text = Page(write(run)).text
    assert text.index("said at 1") < text.index("said at 12") < text.index("said at 2")  # then the steps between


def test_the_same_task_is_preferred_to_one_as_alike(tmp_path):
    for step, tasks in ((1, "58"), (2, "685")):
        lines(tmp_path / f"rollouts/step-{step:06d}.jsonl", [answer(step, task) for task in tasks])
    shown = sides(read_run(tmp_path).rollouts)
    assert [(row[1].task, row[2].task) for row in shown.rows] == [("5", "5"), ("8", "8")]


def test_the_late_step_is_one_near_the_end_that_shares_tasks_with_the_early_one(tmp_path):
    for step in range(30):
        lines(tmp_path / f"rollouts/step-{step:06d}.jsonl", [answer(step, "5" if step in (0, 9, 25) else str(100 + step))])
    shown = sides(read_run(tmp_path).rollouts)
    assert (shown.early, shown.late) == (0, 25)
    assert 29 in shown.steps


def test_answers_show_their_parts_length_and_whether_they_were_judged(tmp_path):
    run = a_run(tmp_path / "r", 1)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    rows = [answer(1, "7", prompt=chat, reward=None, parts={"format": 0.1}, truncated=True, length=23, version=11)]
    lines(run / "rollouts/step-000001.jsonl", [{k: v for k, v in row.items() if k != "advantage"} for row in rows])
    page = Page(write(run))
    for said in (
        "not judged",
        "format 0.1",
        "23 tokens · cut off · weights v11",
        "none judged",
        "system",
        "Be brief.",
        "2 + 2?",
    ):
        assert said in page.text, said
    assert "+0.25" not in page.text
    assert page.all("div", **{"class": "sample"})[0]["data-is"] == "cut unjudged"


def test_a_run_without_reward_shows_its_loss(tmp_path):
    lines(tmp_path / "metrics.jsonl", [{"step": s, "loss": 4.0 - s} for s in range(3)])
    page = Page(write(tmp_path))
    titles = [title.strip() for title in re.findall(r"<h4>([^<]*)</h4>", page.source)]
    assert titles == ["Loss"]
    assert "4 → 2" in page.text


@pytest.mark.parametrize(
    ("largest", "lag", "said"),
    [(9.9e-6, 0, "on-policy"), (9.9e-6, 4, "on-policy"), (4e-3, 0, "numerical mismatch of the engines"),
     (0.02, 0, "too large for on-policy: look into it"), (0.02, 3, "off-policy by up to 3 versions")],
)  # fmt: skip
def test_the_verdict_on_the_policy_gap(largest, lag, said):
    assert verdict(largest, lag)[0] == said


# ---- files that are not as they should be ----


@pytest.mark.parametrize(
    "end", ['{"step": 13, "rew', '{"step": 13, "x": "\\ud83d', "\0\0\0\0", "[1]", '{"step": 13}}\n\n', "é"[:1]]
)
def test_a_broken_last_line_is_passed_over(tmp_path, end):
    run = a_run(tmp_path / "r")
    whole = write(run).read_bytes()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(end.encode()[: 1 if end == "é" else None])  # a character cut in half
    assert write(run).read_bytes() == whole


@pytest.mark.parametrize("bad", ["{", '"text"', "[]", "nul", "[" * 100_000, '{"step": "two"}', '{"step": 1.5}', '{"loss": 1}'])
def test_a_broken_line_elsewhere_is_an_error_that_names_its_place(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\n' + bad + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: ")):
        write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_broken_line_among_the_answers_names_its_file(tmp_path):
    run = a_run(tmp_path / "r")
    (run / "rollouts/step-000001.jsonl").write_text('{"task": \n{"task": "1"}\n')
    with pytest.raises(ValueError, match=r"step-000001\.jsonl:1: this line is not JSON"):
        write(run)


def test_of_a_repeated_step_the_later_line_stands(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines(
        path, [{"step": 1, "loss": 9.0, "old": 1}, {"step": 2, "loss": 8.0}, {"step": 2, "loss": 2.0}, {"step": 1, "loss": 1.0}]
    )
    read = metrics(path)
    assert read.steps.tolist() == [1, 2]
    assert read.columns["loss"].tolist() == [1.0, 2.0]
    assert "old" not in read.columns


def test_null_and_nan_leave_gaps_and_only_nan_is_a_fault(tmp_path):
    rows = [{"step": s, "loss": [1.0, None, float("nan"), float("inf"), 5.0][s], "lr": "no number"} for s in range(5)]
    lines(tmp_path / "metrics.jsonl", rows)
    read = metrics(tmp_path / "metrics.jsonl")
    assert read.get("loss").tolist() == [1.0, 5.0]
    assert read.faults == {"loss": (2, 2)}
    assert "lr" not in read.columns
    page = Page(write(tmp_path))
    assert "loss was NaN or infinite at 2 steps, first at step 2." in page.text
    assert not re.search("[^a-z_](nan|inf)[^a-z_]", page.source.split("<main>")[1].split("<script>")[0])


@pytest.mark.parametrize("missing", ["recipe.yaml", "summary.json", "events.jsonl", "rollouts", "metrics.jsonl"])
def test_any_file_may_be_missing(tmp_path, missing):
    run = a_run(tmp_path / "r")
    (run / missing).rename(tmp_path / missing)
    page = Page(write(run))
    assert not page.open
    assert ("the run is still going" in page.text) == (missing == "summary.json")
    assert ("No step has been finished yet." in page.text) == (missing == "metrics.jsonl")


def test_an_empty_folder_has_a_report_and_a_missing_one_an_error(tmp_path):
    assert "No step has been finished yet." in Page(write(tmp_path)).text
    with pytest.raises(FileNotFoundError, match="no such run directory"):
        write(tmp_path / "nowhere")


def test_a_summary_of_nulls_and_no_interval(tmp_path):
    run = a_run(tmp_path / "r", accuracy_before=None, accuracy_after={"mean": 0.5, "n": None, "low": None, "high": None},
                policy_gap_max=None, seconds=None, steps=None, tokens=None, peak_rss_bytes=None)  # fmt: skip
    text = Page(write(run)).text
    assert "Accuracy after training: 50.0 %." in text
    assert "2.4e-6" in text  # then the metrics' own largest gap
    assert "24 s" in text  # and time/elapsed
    assert "7,800" in text  # and the sum of tokens
    (run / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: this file is not JSON"):
        write(run)


@pytest.mark.parametrize(
    "recipe", ["stages: [", "- a\n- b", "stages: {b: 1", "\0", "!!python/object:os.system {}", "a: &a [*a]"]
)
def test_a_recipe_that_does_not_parse_is_shown_all_the_same(tmp_path, recipe):
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert esc(recipe) in write(tmp_path).read_text()


# ---- hostile text ----


def hostile(tmp_path: Path) -> Path:
    run = tmp_path / "a<b>&\u202e"
    texts = [
        EVIL,
        "nul \0 esc \x1b[31m lone \ud800 \udfff",
        "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
        "&<>\"'" * 4000,
    ]
    rows = [
        answer(1, text, text, prompt=[{"role": EVIL, "content": text}], answer=text, parts={text: 1.0}, version=text)
        for text in texts
    ]
    lines(run / "rollouts/step-000001.jsonl", rows)
    lines(run / "metrics.jsonl", [{"step": s, EVIL: s, f"reward/{EVIL}": s, f"time/{EVIL}": s, "loss": s} for s in range(1, 9)])
    lines(run / "events.jsonl", [{"at": 1e15, "event": EVIL, EVIL: EVIL}, {"event": None, "at": "yesterday"}])
    (run / "recipe.yaml").write_text(f"model: {json.dumps(EVIL)}\nother: '</pre>'\n")
    (run / "summary.json").write_text(json.dumps({"steps": EVIL, EVIL: EVIL}))
    return run


def test_hostile_text_stays_text(tmp_path):
    page = Page(write(hostile(tmp_path)))
    assert not page.open
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "iframe", "object", "embed", "base", "b>"})
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert EVIL in page.text  # and it can be read
    assert "a<b>&⟦U+202E⟧" in page.text


def test_what_a_browser_would_hide_is_shown(tmp_path):
    page = Page(write(hostile(tmp_path)))
    assert "nul ␀ esc ␛[31m lone � �" in page.text
    assert "⟦U+202E⟧right to left⟦U+202C⟧ שלום" in page.text
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page.source)


def test_a_megabyte_of_text_is_cut_with_a_note(tmp_path):
    run = a_run(tmp_path / "r", 1)
    small = write(run).stat().st_size
    text = "begin " + "<" * 1_000_000 + " the end is 42"
    lines(run / "rollouts/step-000001.jsonl", [answer(1, "1", text, prompt=text)])
    page = Page(write(run))
    assert len(page.source.encode()) < small + 20_000
    assert "begin <<<" in page.text
    assert "<<< the end is 42" in page.text
    assert "999,270 characters between, 997,770 of them not in this report" in page.text  # all but 450 + 300, and 1500 of those


def test_a_short_text_is_shown_whole():
    assert passage("x" * 1150).head == "x" * 1150
    cut = passage("a" * 1000 + "b" * 1000 + "c" * 1000)
    assert (len(cut.head), len(cut.middle), cut.omitted, len(cut.tail)) == (450, 1500, 750, 300)


# ---- pipelines ----


def a_pipeline(path: Path) -> Path:
    for name, low, high in (("zero", 0.1, 0.2), ("align", 0.2, 0.5)):
        a_run(path / name, 4, accuracy_before={"mean": low}, accuracy_after={"mean": high})
    (path / "logs").mkdir()
    (path / "recipe.yaml").write_text(
        "base: acme/tiny\nstages:\n  zero: {recipe: a.yaml}\n  align: {recipe: b.yaml}\n  last: {}\n"
    )
    told = {
        "accuracy_before": {"mean": 0.1, "n": 64, "low": 0.05, "high": 0.2},
        "accuracy_after": {"mean": 0.5, "low": 0.4, "high": 0.6},
    }
    (path / "summary.json").write_text(json.dumps(told | {"seconds": 600}))
    return path


def test_a_pipeline_has_a_headline_and_its_stages_in_the_recipe_s_order(tmp_path):
    page = Page(write(a_pipeline(tmp_path / "p")))
    assert not page.open
    assert "10.0 % → 50.0 %" in page.text
    assert "+40.0 points. The 95 % intervals do not overlap." in page.text
    assert re.findall(r'<h2 id="[^"]*">([^<]*)</h2>', page.source) == ["zero", "align"]
    assert "10.0 % → 20.0 %" in page.text  # stage by stage
    assert rows(page)[3] == ["last", "", "", "waiting", "", "", ""]
    assert "10 min" in page.text
    assert len(ids := [a["id"] for _, a in page.tags if a.get("id")]) == len(set(ids))


def test_without_an_order_in_the_recipe_the_first_event_decides(tmp_path):
    run = a_pipeline(tmp_path / "p")
    (run / "recipe.yaml").unlink()
    lines(run / "zero/events.jsonl", [{"at": 2_000_000_000, "event": "started"}])
    assert [stage.name for stage in read_run(run).stages] == ["align", "zero"]
    (run / "summary.json").unlink()
    for name, at in (("zero", 100), ("align", 200)):
        (run / name / "events.jsonl").unlink()
        os.utime(run / name / "summary.json", (at, at))
    assert [stage.name for stage in read_run(run).stages] == ["zero", "align"]
    assert "10.0 % → 50.0 %" in Page(write(run)).text  # the first stage's before, the last one's after


# ---- kinds of stage ----


def score(mean: float, n: int = 64, reach: float = 0.05) -> dict:
    return {"mean": mean, "n": n, "low": mean - reach, "high": mean + reach}


def an_exam(step: int, all_: float, **domains: float) -> dict:
    of = {name: {"pass@1": score(mean, 32), "format": score(0.9, 32)} for name, mean in domains.items()}
    return {"step": step, "metric": "exact", "accuracy": score(all_), "domains": of, "tasks": {}, "unjudged": 0,
            "scores": {"pass@1": score(all_), "format": score(0.9)}}  # fmt: skip


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


KINDS = {"cold": "train", "reason": "train", "harvest": "sample", "exam": "eval", "release": "export", "later": "train"}


def an_r1(path: Path) -> Path:
    """A pipeline with a stage of every kind, one of them not begun, and one that got worse in a domain."""
    put(path / "recipe.yaml", "stages:\n" + "".join(f"  {name}: {{kind: {kind}}}\n" for name, kind in KINDS.items()))
    needs = {"cold": {}, "reason": {"model": "cold"}} | {name: {"model": "reason"} for name in ("harvest", "exam", "release")}
    needs["release"]["export.scores"], needs["later"] = "exam", {"tasks.mixture.sums.path": "harvest"}
    put(path / "pipeline.json", {"base": {"from_config": {}}, "seed": 0, "needs": needs})
    for at, (name, kind) in enumerate([*KINDS.items()][:-1]):
        told = {"stage": name, "kind": kind, "state": "done", "seconds": 60.0 * (at + 1), "recipe": {"model": "$base"},
                "inputs": {"model": {"path": "/base", "stage": "base"}} if name == "cold" else {},
                "weights": {"begin": "b" * 64, "end": "e" * 64}}  # fmt: skip
        put(path / name / "manifest.json", told)
        put(path / name / "recipe.yaml", f"kind: {kind}\nmodel: /somewhere/base\nloop: {{steps: 3, groups: 4}}\n")
    for name in ("cold", "reason", "harvest", "exam"):
        lines(path / name / "metrics.jsonl", [row | {"kept": 7} for row in steps(1 if name == "exam" else 3)])
    for name, ends in (("cold", (0.0, 0.3)), ("reason", (0.3, 0.7))):
        put(path / name / "summary.json", {"accuracy_before": score(ends[0]), "accuracy_after": score(ends[1])})
        for when, step, mean in (("before", 0, ends[0]), ("step-000002", 2, 0.5), ("after", 3, ends[1])):
            put(path / name / f"evaluations/{when}.json", an_exam(step, mean, sums=mean, greetings=1 - mean))
    (path / "reason/weights/v2").mkdir(parents=True)
    (path / "reason/weights/best").symlink_to("v2")
    worse = "greetings: 0.700 -> 0.300, a loss of 0.400 (3.1 standard errors, n = 32)"
    put(path / "reason/summary.json", {"accuracy_before": score(0.3), "accuracy_after": score(0.7), "regressions": [worse]})
    left_out = {"too many": 10, "exact": 25, "language": 5}
    put(path / "harvest/summary.json", {"accuracy_after": score(0.72), "samples": 60, "left_out": left_out})
    for name in ("harvest", "exam"):
        put(path / name / "scores.json", an_exam(0, 0.725, sums=0.625, greetings=0.825) | {"step": 0})
    put(path / "exam/summary.json", {"accuracy_after": score(0.725)})
    put(path / "release/summary.json", {"accuracy_after": score(0.725), "steps": 0, "tokens": 0, "seconds": 6.2})
    card = "---\ntags: [rlreason]\n---\n\n# r1\n\nA **causal** model, see [the run](x/y).\n\n## More\n\nBelow.\n"
    put(path / "release/model/README.md", card)
    put(path / "release/model/model.safetensors", "weights")
    return path


def rows(page: Page) -> list[list[str]]:
    """The cells of the table at the head of a pipeline's page."""
    table = re.search(r'<nav class="graph.*?</nav>', page.source, re.S)[0]
    cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", table, re.S))
    return [[re.sub(r"<[^>]+>", " ", cell).strip() for cell in row] for row in cells]


def test_the_graph_of_a_pipeline_is_told_in_the_recipe_s_order(tmp_path):
    page = Page(write(an_r1(tmp_path / "r1")))
    assert not page.open
    assert [[re.sub(" +", " ", cell).replace(" ,", ",") for cell in row] for row in rows(page)] == [
        ["stage", "kind", "takes", "state", "time", "accuracy", "weights"],
        ["cold", "train", "base model", "done", "60 s", "0.0 % → 30.0 %", "bbbbbb → eeeeee"],
        ["reason", "train", "cold model", "done worse: greetings: 0.700 -&gt; 0.300, a loss of 0.400 "
         "(3.1 standard errors, n = 32)", "2 min", "30.0 % → 70.0 %", "bbbbbb → eeeeee"],
        ["harvest", "sample", "reason model", "done", "3 min", "72.0 %", "bbbbbb → eeeeee"],
        ["exam", "eval", "reason model", "done", "4 min", "72.5 %", "bbbbbb → eeeeee"],
        ["release", "export", "reason model, exam scores", "done", "5 min", "72.5 %", "bbbbbb → eeeeee"],
        ["later", "train", "harvest sums", "waiting", "", "", ""],
    ]  # fmt: skip
    links = {a["href"] for a in page.all("a")}
    assert links == {f"#stage-{at}" for at in range(5)}
    assert links <= {f"#{a['id']}" for _, a in page.tags if a.get("id")}


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"state": "failed", "why": "out of memory\nso it ended"}, "failed out of memory"),
        ({"state": "stopped", "why": "asked to"}, "stopped asked to"),
        ({"state": "begun"}, "begun"),
        ({"state": "done", "why": "an earlier failure"}, "done"),
    ],
)
def test_a_stage_s_state_is_its_manifest_s(tmp_path, manifest, said):
    run = an_r1(tmp_path / "r1")
    put(run / "cold/manifest.json", {"kind": "train"} | manifest)
    page = Page(write(run))
    assert re.sub(" +", " ", rows(page)[1][3]) == said
    if said.startswith("failed"):
        assert "failed: out of memory\nso it ended" in page.text


def test_a_stage_that_was_taken_up_again_says_that_its_time_is_not_all(tmp_path):
    run = an_r1(tmp_path / "r1")
    lines(run / "cold/events.jsonl", [{"event": "start", "resumed": False}, {"event": "start", "resumed": True}])
    assert "60 ssince it was resumed" in Page(write(run)).text


def test_held_out_accuracy_is_drawn_by_domain_with_its_intervals_and_the_best_step(tmp_path):
    page = Page(write(an_r1(tmp_path / "r1")))
    reason = page.source.split('id="stage-1"')[1].split('id="stage-2"')[0]
    held = re.findall(
        r'<li class="s\d" data-x="(.*?)" data-mid="(.*?)" data-low="(.*?)" data-high="(.*?)">.*?</span>(\w+)', reason
    )
    assert [(name, json.loads(x), json.loads(mid)) for x, mid, _, _, name in held[:3]] == [
        ("all", [0, 2, 3], [0.3, 0.5, 0.7]),
        ("greetings", [0, 2, 3], [0.7, 0.5, 0.3]),
        ("sums", [0, 2, 3], [0.3, 0.5, 0.7]),
    ]
    assert (json.loads(held[0][2]), json.loads(held[0][3])) == ([0.25, 0.45, 0.65], [0.35, 0.55, 0.75])
    assert "best: step 2" in page.text
    assert page.text.count("best: step") == 1
    assert "Worse than before training: greetings: 0.700 -> 0.300, a loss of 0.400" in page.text
    assert "30.0 %−40.025.0 % to 35.0 %" in page.text  # the table: greetings after, the change, the interval


def test_no_more_than_six_lines_are_drawn_of_many_domains(tmp_path):
    for when, step in (("before", 0), ("after", 9)):
        put(tmp_path / f"evaluations/{when}.json", an_exam(step, 0.5, **{f"d{i}": i / 10 for i in range(9)}))
    page = Page(write(tmp_path))
    assert len(re.findall(r'class="dot s\d"', page.source)) == 6
    assert "4 more domains are in evaluations/." in page.text


def test_a_domain_that_all_tasks_share_is_no_line_of_its_own(tmp_path):
    for when, step in (("before", 0), ("after", 9)):
        put(tmp_path / f"evaluations/{when}.json", an_exam(step, 0.5, sums=0.5))
    assert len(re.findall(r'class="dot s\d"', write(tmp_path).read_text())) == 1


def test_an_examination_shows_every_score_of_every_domain(tmp_path):
    page = Page(write(an_r1(tmp_path / "r1")))
    exam = page.source.split('id="stage-3"')[1].split('id="stage-4"')[0]
    table = re.search(r'<table class="scores">.*?</table>', exam, re.S)[0]
    text = [
        [re.sub("<[^>]+>", " ", cell).split() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in table.split("<tr>")[1:]
    ]
    assert [" ".join(cell) for row in text for cell in row] == [
        "score", "all 64 tasks", "greetings 32 tasks", "sums 32 tasks",
        "pass@1", "72.5 % 67.5 % to 77.5 %", "82.5 % 77.5 % to 87.5 %", "62.5 % 57.5 % to 67.5 %",
        "format", "90.0 % 85.0 % to 95.0 %", "90.0 % 85.0 % to 95.0 %", "90.0 % 85.0 % to 95.0 %",
    ]  # fmt: skip
    assert "all: 72.5 %; greetings: 82.5 %; sums: 62.5 %" in exam  # the chart
    assert "<h3>Curves" not in exam  # of a single wave


def test_a_score_that_is_no_share_is_no_percentage(tmp_path):
    put(tmp_path / "recipe.yaml", "kind: eval")
    put(
        tmp_path / "scores.json",
        {"metric": "m", "scores": {"pass@1": score(0.5), "style": {"mean": -3.25, "low": -4, "high": 2}}},
    )
    text = Page(write(tmp_path)).text
    assert "style−3.25−4 to 2" in text


def test_why_answers_were_left_out_is_counted(tmp_path):
    page = Page(write(an_r1(tmp_path / "r1")))
    harvest = page.source.split('id="stage-2"')[1].split('id="stage-3"')[0]
    table = re.search(r'<table class="bars">.*?</table>', harvest, re.S)[0]
    said = re.findall(r"<th[^>]*>(.*?)<small>(.*?)</small></th><td>(.*?)</td><td>(.*?)</td>.*?width:(.*?)%", table)
    assert said == [
        ("kept", "in samples.jsonl", "60", "60.0 %", "60.0"),
        ("exact", "not right", "25", "25.0 %", "25.0"),
        ("too many", "good, but the same text twice, or beyond the best few", "10", "10.0 %", "10.0"),
        ("language", "less than is asked for", "5", "5.0 %", "5.0"),
    ]
    assert "Answers kept60of 100" in page.text


def test_an_export_shows_its_folder_and_what_its_card_says_first(tmp_path):
    page = Page(write(an_r1(tmp_path / "r1")))
    for said in ("A causal model, see the run.", "release/model", "model.safetensors (7 bytes)", "export · base"):
        assert said in page.text, said
    (tmp_path / "r1/release/model/README.md").unlink()
    assert "No model has been exported yet." in Page(write(tmp_path / "r1")).text


@pytest.mark.parametrize(
    ("card", "said"),
    [("# a\n\nb\nc\n\nd", ("a", "b c")), ("---\nx: 1\n---\n# `a`\n## h\n\n**b**", ("a", "b")), ("", ("", "")),
     ("no title\n\nb", ("", "no title")), ("# t\n\n| a |\n\n```\nx\n```\n\nb", ("t", "b"))],
)  # fmt: skip
def test_a_card_s_headline(card, said):
    assert headline(card) == said


STRANGE = [
    "{",
    "[]",
    "null",
    "[" * 100_000,
    '"x"',
    "{}",
    '{"scores": 1, "domains": [], "accuracy": [], "state": 3, "step": "x"}',
    '{"scores": {"pass@1": {"mean": 1e99, "low": "x"}, "y": null}, "domains": {"d": 1, "e": {"pass@1": 5}}, "step": 1e300}',
    '{"accuracy": 0.5, "step": 2, "domains": {"d": {}}, "kind": [], "weights": [], "inputs": [], "needs": {"cold": 7}}',
    '{"accuracy": NaN, "scores": {"mean": {"mean": -1e99, "low": -1e99, "high": 1e99}}, "inputs": {"model": 3}}',
]


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize(
    "file",
    ["pipeline.json", "cold/manifest.json", "reason/evaluations/after.json", "exam/scores.json", "release/model/README.md"],
)
def test_a_strange_file_of_a_stage_costs_no_more_than_itself(tmp_path, file, strange):
    run = an_r1(tmp_path / "r1")
    put(run / file, strange)
    page = Page(write(run))
    assert not page.open
    assert {row[0] for row in rows(page)} == {"stage", *KINDS}
    assert "25.0 % to 35.0 %" in page.text  # the rest is there
    if strange[0] != "{" and not file.endswith(".md"):
        assert "and was left out" in page.text
    assert not re.search("[^a-z_](nan|inf)[^a-z_]", page.source.split("<main>")[1].split("<script>")[0])


@pytest.mark.parametrize(
    "file",
    [
        "pipeline.json",
        "recipe.yaml",
        "cold/manifest.json",
        "harvest/summary.json",
        "exam/scores.json",
        "exam/metrics.jsonl",
        "reason/evaluations/before.json",
        "reason/weights/best",
    ],
)
def test_any_file_of_a_stage_may_be_missing(tmp_path, file):
    run = an_r1(tmp_path / "r1")
    (run / file).unlink()
    page = Page(write(run))
    assert not page.open
    assert {"cold", "reason", "harvest", "exam", "release"} <= {row[0] for row in rows(page)}


def test_hostile_text_in_a_stage_s_files_stays_text(tmp_path):
    run = an_r1(tmp_path / "r1")
    put(run / "recipe.yaml", f"stages:\n  {json.dumps(EVIL)}: {{kind: {json.dumps(EVIL)}}}\n")
    put(run / "pipeline.json", {"needs": {EVIL: {EVIL: EVIL}, "cold": {EVIL: EVIL}}})
    told = {"kind": "sample", "state": EVIL, "why": EVIL, "inputs": {EVIL: {"stage": EVIL}}, "weights": {"begin": EVIL}}
    put(run / "harvest/manifest.json", told)
    put(run / "cold/manifest.json", {"state": "failed", "why": EVIL, "kind": EVIL})
    put(run / "harvest/summary.json", {"samples": 3, "left_out": {EVIL: 4}})
    put(run / "reason/summary.json", {"regressions": [EVIL, {EVIL: EVIL}]})
    evil = an_exam(3, 0.5, **{EVIL: 0.5, "b": 0.5}) | {"metric": EVIL}
    evil["scores"][EVIL] = score(0.5)
    put(run / "reason/evaluations/after.json", evil)
    put(run / "exam/scores.json", evil)
    put(run / "release/model/README.md", f"# {EVIL}\n\n{EVIL}\n")
    put(run / "release/model/<b>x", "")
    page = Page(write(run))
    assert not page.open
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "iframe", "object", "embed", "base"})
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert len(ids := [a["id"] for _, a in page.tags if a.get("id")]) == len(set(ids))


def test_a_stage_alone_is_shown_as_its_kind(tmp_path):
    run = an_r1(tmp_path / "r1")
    for stage, said in (("exam", "Accuracy: 72.5 %"), ("release", "release/model"), ("harvest", "60 of 100 answers")):
        page = Page(write(run / stage))
        assert said in page.text
        assert not page.all("nav")


def test_the_figures_of_the_documentation_are_drawn_from_any_pipeline(tmp_path):
    place = Path(__file__).parents[1] / "docs/r1_curves.py"
    spec = importlib.util.spec_from_file_location("r1_curves", place)
    sys.modules["r1_curves"] = figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    run = an_r1(tmp_path / "r1")
    put(run / "reason/recipe.yaml", "algorithm: {answers: policy}")
    paths = figures.draw([read_run(run), read_run(run)], tmp_path / "drawn")
    assert [path.stem for path in paths] == ["ladder", "reward", "held-out", "behaviour"]
    for path in paths:
        text = path.read_text()
        assert len(text) < 60_000
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(r"href|url\(|<script|<image", text)
    ladder = re.findall(r'text-anchor="end">([^<]*)</text>', paths[0].read_text())
    assert ladder == ["cold", "reason", "exam, of reason"] * 2 * 3  # of two runs; all, greetings, sums


# ---- the page itself ----


def test_the_same_run_gives_the_same_bytes_and_leaves_nothing_else_behind(tmp_path):
    run = a_run(tmp_path / "r")
    before = {path.name for path in run.iterdir()}
    path = write(run)
    assert path == run / "report.html"
    first = path.read_bytes()
    os.utime(run / "metrics.jsonl", (1, 1))
    code = f"from rlreason.report import write; write({str(run)!r})"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        cwd=Path(__file__).parents[1],
    )
    assert path.read_bytes() == first
    assert {p.name for p in run.iterdir()} == before | {"report.html"}


def test_a_failed_write_leaves_the_old_report_and_no_other_file(tmp_path):
    run = a_run(tmp_path / "r")
    old = write(run).read_bytes()
    (run / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1"):
        write(run)
    assert (run / "report.html").read_bytes() == old
    (tmp_path / "full/report.html/is a folder").mkdir(parents=True)
    with pytest.raises(OSError, match="report"):
        write(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["report.html"]


def test_the_page_loads_nothing(tmp_path):
    page = Page(write(a_pipeline(tmp_path / "p")))
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}:
                assert value == "data:," or value.startswith("#"), (tag, name, value)
    style = re.search("<style>(.*?)</style>", page.source, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in re.sub("<meta http-equiv", "", page.source)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")


def test_the_page_is_whole_and_named_for_those_who_cannot_see_it(tmp_path):
    page = Page(write(a_run(tmp_path / "r")))
    assert page.source.startswith("<!doctype html>")
    assert not page.open
    charts = [a for a in page.all("svg", role="img") if "aria-labelledby" in a]
    named = {a["id"] for tag, a in page.tags if tag in {"title", "desc"} and a.get("id")}
    assert len(charts) >= 8
    assert all(ident in named for chart in charts for ident in chart["aria-labelledby"].split())
    assert "reward: 0.0833 → 1 from step 1 to 12, between 0.0833 and 1." in page.text


def test_without_its_script_the_page_keeps_every_answer_and_the_picker_is_hidden(tmp_path):
    page = Page(write(a_run(tmp_path / "r")))
    assert all("hidden" in form for form in page.all("form"))
    for step in range(1, 13):
        assert f"said at {step}" in page.text


def test_a_long_run_stays_small_and_says_what_it_leaves_out(tmp_path):
    run = tmp_path / "long"
    noise = np.random.default_rng(0).normal(size=(20_000, 20))
    lines(
        run / "metrics.jsonl",
        [
            {"step": s} | {f"m{i}" if i > 6 else f"reward/{i}": x for i, x in enumerate(row)}
            for s, row in enumerate(noise.tolist())
        ],
    )
    for step in range(40):
        texts = [answer(step, str(i % 8), "<&" * 5000) for i in range(64)]
        lines(run / "rollouts" / f"step-{step:06d}.jsonl", texts)
    page = Page(write(run))
    assert len(page.source.encode()) < 3_000_000
    assert "bands span the least and greatest of each 83 or so of the 20,000 steps" in page.text
    assert re.search(r"1[23] of 40 recorded steps", page.text)
    assert "tasks were left out to keep this file small." in page.text
    assert re.search(r"\d+ more are in metrics.jsonl", page.text)


def test_importing_the_report_loads_nothing_heavy():
    heavy = ("torch", "ray", "vllm", "deepspeed", "transformers", "omegaconf", "yaml")
    code = f"import sys; import rlreason.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "[]"


# ---- numbers and curves ----


def test_the_moving_average_by_hand():
    # span 3: weight 1/2. sums 2, 1 + 3, 2 + 4 ... over weights 1/2, 3/4, 7/8: 4, 4/3, 20/7
    np.testing.assert_allclose(ema(np.array([4.0, 0.0, 4.0]), 3), [4, 4 / 3, 20 / 7])
    np.testing.assert_allclose(ema(np.full(50, 0.3), 7), 0.3)
    np.testing.assert_allclose(ema(np.array([1.0, 5.0, 2.0]), 1), [1, 5, 2])


def test_thinning_keeps_every_extreme(tmp_path):
    values = np.sin(np.arange(5000.0))
    values[1234], values[4321] = 9.0, -9.0
    lines(tmp_path / "m.jsonl", [{"step": s, "x": v} for s, v in enumerate(values.tolist())])
    c = curve(metrics(tmp_path / "m.jsonl"), "x", 100)
    assert len(c.steps) == 100
    assert (c.high.max(), c.low.min()) == (9.0, -9.0)
    assert c.steps[-1] == 4999


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-300, 2e-300], [-1e99, 1e99], [0.0, 0.0, 5e-324], [-3.0, -2.0]])
@pytest.mark.parametrize("log", [False, True])
def test_any_finite_values_have_an_axis(tmp_path, values, log):
    lines(tmp_path / "m.jsonl", [{"step": s, "x": v} for s, v in enumerate(values)])
    c = curve(metrics(tmp_path / "m.jsonl"), "x", 100, log)
    axis = frame([c], log)
    places = axis.place(c.smooth)
    assert axis.low < axis.high
    assert np.isfinite(places).all()
    assert (places >= 0).all()
    assert (places <= 1).all()


def test_one_extreme_value_does_not_flatten_the_rest_and_is_told(tmp_path):
    values = [0.5 + 0.01 * (s % 10) for s in range(100)]
    values[16] = 812.0
    lines(tmp_path / "metrics.jsonl", [{"step": s, "grad_norm": v} for s, v in enumerate(values)])
    read = metrics(tmp_path / "metrics.jsonl")
    assert frame([curve(read, "grad_norm", 300)]).high < 10
    assert "Above the frame: grad_norm 812 at step 16" in Page(write(tmp_path)).text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (None, "–"),
        (float("nan"), "–"),
        (10**400, "–"),
        ("7", "–"),
        (0.71, "0.71"),
        (0.12345, "0.123"),
        (-0.5, "−0.5"),
        (512, "512"),
        (1234.5, "1,234"),
        (123456, "123,456"),
        (2.5e9, "2.5e9"),
        (3.1e-7, "3.1e-7"),
        (-3.1e-7, "-3.1e-7"),
    ],
)
def test_numbers_are_written_for_reading(value, shown):
    assert number(value) == shown


def test_counts_and_durations_are_written_for_reading():
    assert [count(v) for v in (12, 61_500, 1_234_567, 6.2e9, None)] == ["12", "61,500", "1.23 M", "6.2 G", "–"]
    assert [duration(v) for v in (0.84, 63.4, 725, 720, 11_220, None)] == [
        "0.84 s",
        "63 s",
        "12 min 5 s",
        "12 min",
        "3 h 07 min",
        "–",
    ]


def test_a_reader_of_lines_takes_nothing_from_a_missing_file(tmp_path):
    assert list(objects(tmp_path / "none.jsonl")) == []
