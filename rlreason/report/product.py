"""What a stage that does not train made: the answers that it kept, or a model for others to use."""

from __future__ import annotations

import re

from rlreason.report.facts import left_out
from rlreason.report.read import Run
from rlreason.report.text import esc, number, percent, real, size

REASONS = 20  # why answers were left out, in one list
MEANING = {
    "too many": "good, but the same text twice, or beyond the best few",
    "truncated": "cut off at the token limit",
    "unjudged": "no reward could be given",
}
CARD = 30_000  # characters of a model card
FILES = 12


def kept_html(run: Run) -> str:
    """Of a stage that samples: how many answers it kept, and why it left the others out, as bars."""
    kept, others = real(run.summary.get("samples")), left_out(run.summary)
    if kept is None:
        return ""
    asked = kept + sum(others.values())
    rows = [_bar("kept", "in samples.jsonl", kept, asked, "kept")]
    metric = run.scores.metric if run.scores else ""
    meaning = {metric: "not right"} | MEANING
    rows += [_bar(name, meaning.get(name, "less than is asked for"), n, asked) for name, n in [*others.items()][:REASONS]]
    more = sum([*others.values()][REASONS:])
    rows += [_bar("other reasons", "in summary.json", more, asked)] if more else []
    return (
        f'<h3>Answers kept</h3><p class="how">{number(kept)} of {number(asked)} answers; each of the others is counted for '
        f'the first thing that was wrong with it.</p><div class="scroll"><table class="bars"><tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def _bar(name: str, meaning: str, n: float, asked: float, kind: str = "") -> str:
    part = min(1.0, max(0.0, n / asked)) if asked > 0 else 0.0
    return (
        f'<tr class="{kind}"><th scope="row">{esc(name, 60)}<small>{esc(meaning, 100)}</small></th><td>{number(n)}</td>'
        f'<td>{percent(part)}</td><td><span class="bar"><i style="width:{100 * part:.1f}%"></i></span></td></tr>'
    )


def export_html(run: Run) -> str:
    """Of a stage that exports: the folder, its files, and what the card says first of all; the card itself folded."""
    if not run.card:
        return '<p class="empty">No model has been exported yet.</p>'
    outputs = run.manifest.get("outputs")
    made = outputs.get("model") if isinstance(outputs, dict) else None
    known = [
        ("Folder", f"{run.name}/model"),
        ("SHA-256", made.get("sha256") if isinstance(made, dict) else None),
        ("Files", ", ".join(f"{name} ({size(n) if n >= 2**20 else f'{n:,} bytes'})" for name, n in run.exported[:FILES])),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{esc(said, 1000)}</dd>" for name, said in known if said)
    title, first = headline(run.card)
    what = f'<p class="what">{esc(first, 2000)}</p>' if first else ""
    cut = '<p class="cut">cut here; the file has the rest</p>' if len(run.card) > CARD else ""
    return (
        f'<h3>{esc(title or "The model", 100)}</h3>{what}<dl class="facts">{rows}</dl>'
        f"<details><summary>Its card, {esc(run.name, 60)}/model/README.md</summary>"
        f"<pre>{esc(run.card, CARD)}</pre>{cut}</details>"
    )


def headline(card: str) -> tuple[str, str]:
    """(a card's title, its first paragraph), without front matter, links and emphasis."""
    text = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.S)
    title = re.search(r"^# (.+)$", text, re.M)
    rest = text[title.end() :] if title else text
    blocks = (block.strip() for block in rest.split("\n\n"))
    first = next((block for block in blocks if block and not block.startswith(("#", "|", "```"))), "")
    return _plain(title[1]) if title else "", _plain(" ".join(first.split()))


def _plain(text: str) -> str:
    return re.sub(r"\*\*|`", "", re.sub(r"\[([^\]\[]*)\]\([^()]*\)", r"\1", text))
