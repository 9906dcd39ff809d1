"""The README tells the truth: its commands are run by tests, its tree is the tree, its files are there."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))]

# Each command of the README, and the test that runs it. A command that is not here fails the test below.
RUN_BY = {
    "make quickstart": "e2e/test_quickstart.py",
    "make test": "../.ci/run",
    "make lint": "../.ci/run",
    "make bench": "e2e/test_benchmark.py",
    "make chaos": "e2e/test_recovery.py",
    "make contracts": "test_contracts.py",
    "make gpu-check": "e2e/test_make_gpu_check.py",
    "rlreason train": "e2e/test_runs.py",
    "rlreason config": "e2e/test_runs.py",
    "rlreason eval": "e2e/test_runs.py",
    "rlreason report": "e2e/test_runs.py",
    "rlreason status": "e2e/test_kills.py",
    "pip install": "e2e/test_install.py",
}


def commands() -> list[str]:
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
    fenced = [line for block in blocks for line in block.splitlines()]
    inline = [command for page in PAGES for command in re.findall(r"`((?:make|rlreason|pip)\s[^`]+)`", page)]
    return [re.sub(r"\s+", " ", line.split("#")[0]).strip() for line in [*fenced, *inline] if line.strip()]


def test_every_command_is_run_by_a_test():
    found = commands()
    assert len(found) >= 12
    for line in found:
        start = " ".join(line.split()[:2])
        assert start in RUN_BY, f"`{line}` is run by no test"
        words = start.split()
        text = (ROOT / "tests" / RUN_BY[start]).read_text()
        assert f'"{words[1]}"' in text or re.search(rf"^{start}\b", text, re.MULTILINE), f"{RUN_BY[start]} was to run `{line}`"


def test_the_tree_is_the_tree():
    block = re.search(r"```\nrlreason/\n(.*?)```", README, re.DOTALL)[1]
    told = {line.split()[0].rstrip("/") for line in block.splitlines() if line.startswith("  ")}
    there = {
        p.name for p in (ROOT / "rlreason").iterdir() if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())
    }
    assert told == there - {"__init__.py", "__main__.py"}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_options_in_the_recipe_that_is_shown_exist():
    from rlreason.recipe import load

    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1].replace("../base.yaml", str(ROOT / "recipes" / "base.yaml"))
    shown = ROOT / "runs" / "readme.yaml"
    shown.parent.mkdir(exist_ok=True)
    shown.write_text(block)
    assert load(shown).loop.max_lag == 1


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(("lock", "extras"), [("cpu", ["cpu"]), ("gpu", ["gpu"]), ("dev", ["dev"])])
def test_the_lock_files_satisfy_what_pip_would_install(lock, extras):
    pinned = {}
    for line in (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"{line} is not pinned"
            pinned[canonicalize_name(name)] = version.split("+")[0]
    wanted = [] if lock == "dev" else PROJECT["dependencies"]
    for text in wanted + [r for extra in extras for r in PROJECT["optional-dependencies"][extra]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


def test_what_cannot_load_beside_the_cpu_build_of_torch_is_not_installed():
    lock = (ROOT / "requirements" / "cpu.lock").read_text()
    assert not re.search(r"^(torchvision|torchaudio|torchcodec)", lock, re.MULTILINE)
