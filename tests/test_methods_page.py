"""docs/methods.md is what the program has: every name, every default, and every recipe line is tried."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from rlreason.algorithms import ADVANTAGES, AVERAGES, CORRECTIONS, COVARIANCE, FILTERS, KL, LOSSES, PRESETS
from rlreason.checks import CHOICES
from rlreason.named import options
from rlreason.recipe import load
from rlreason.rewards import FACTS, REWARDS

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")


def tables() -> dict[str, list[dict[str, str]]]:
    """Heading -> the rows of every table below it, by the names of its columns."""
    found: dict[str, list[dict[str, str]]] = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        heading, head = section.splitlines()[0], []
        for line in section.splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not cells or not line.startswith("|"):
                head = []
            elif not head:
                head = cells
            elif not set(line) <= set("|- "):
                found.setdefault(heading, []).append(dict(zip(head, cells, strict=True)))
    return found


TABLES = tables()


def names(section: str, column: str = "name") -> list[str]:
    return [row[column].strip("`") for row in TABLES[section] if column in row]


@pytest.mark.parametrize(
    ("section", "column", "registry"),
    [
        ("Presets", "preset", PRESETS),
        ("Credit", "name", ADVANTAGES),
        ("Losses", "name", LOSSES),
        ("Losses", "`algorithm.per`", AVERAGES),
        ("The KL divergence to a reference", "name", KL),
        ("Mismatch between sampler and learner", "name", CORRECTIONS),
        ("Rewards", "name", REWARDS),
    ],
)
def test_the_page_lists_what_there_is(section, column, registry):
    assert sorted(names(section, column)) == sorted(registry)


def test_the_page_lists_every_choice_of_groups_and_tokens():
    shown = names("Which groups, tasks and samples", "option") + names("Entropy", "option")
    wanted = [f"keep: {name}" for name in FILTERS] + [*COVARIANCE]
    wanted += [f"overlong: {name}" for name in CHOICES["algorithm.overlong"] if name != "keep"]
    wanted += [f"curriculum: {name}" for name in CHOICES["tasks.curriculum"] if name != "none"]
    assert set(wanted) <= set(shown)


@pytest.mark.parametrize("registry", [ADVANTAGES, LOSSES, CORRECTIONS, COVARIANCE, REWARDS], ids=lambda r: next(iter(r)))
def test_the_defaults_are_those_of_the_code(registry):
    for section in TABLES.values():
        for row in section:
            name = row.get("name", row.get("option", "")).strip("`")
            if name in registry and "defaults" in row and row["defaults"] != "see below":
                known = {option: value for option, value in options(registry[name]).items() if option not in FACTS}
                own = ", ".join(f"{option}={value!r}" for option, value in known.items())
                assert row["defaults"].strip("`") == (own or "–"), name


LINES = sorted({row["recipe line"].strip("`") for section in TABLES.values() for row in section if "recipe line" in row})


@pytest.mark.parametrize("line", LINES)
def test_every_recipe_line_is_one(line, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: my/model\nout: runs/x\n")
    given = shlex.split(line)
    somewhere = any(setting.split("=")[0] in ("tasks.path", "tasks.generate", "tasks.mixture") for setting in given)
    load(path, given if somewhere else [*given, "tasks.path=tasks.jsonl"])


def test_every_row_has_its_line():
    assert len(LINES) > 60
    for section, found in TABLES.items():
        assert all(row.get("recipe line", "").strip("`") for row in found), section


def test_the_calls_from_python_are_as_shown():
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    given = {name: torch.zeros(2, 3) for name in ("logp", "old", "advantage", "reference", "sampler")}
    results = given | {"mask": torch.ones(2, 3)}
    exec(code.split("def letters")[0], results)
    assert results["loss"] == 0
