"""Each room may be read alone: what it may import is part of the design."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"ray", "vllm", "deepspeed", "torch", "transformers", "wandb", "datasets"}
MAY = {  # a file of the package, or a folder -> which of them it may import
    "cluster": {"ray"},
    "worker": {"ray"},
    "rollout": {"vllm"},
    "learner": {"deepspeed", "torch", "transformers"},
    "weights": {"torch", "vllm"},  # both ends of vLLM's transfer API
    "algorithms": {"torch"},  # for type checkers only
    "export": {"torch", "transformers"},  # in its own process
    "canary": {"torch"},
    "forward": {"torch"},
    "gemm": {"torch"},
    "head": {"torch"},
    "pretrained": {"transformers"},
    "frozen": {"deepspeed", "torch"},
    "moved": {"deepspeed", "torch"},
    "meeting": {"torch"},  # torch.distributed
    "metrics": {"wandb"},
    "model": {"torch", "transformers"},  # weights are drawn in a process of its own
    "training": {"transformers"},  # the tokenizer of recorded answers
    "tasks": {"datasets"},
    "rewards/scorer": {"torch", "transformers"},  # a reward model, read by who asks for a score
}
PACKAGE = Path(__file__).parent.parent / "rlreason"
ROOMS = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(room):
    nodes = [n for n in ast.walk(ast.parse(room.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    may = [MAY[place] for place in MAY if room.with_suffix("").is_relative_to(PACKAGE / place)]
    assert {n.split(".")[0] for n in names} & HEAVY <= set().union(*may)


def test_describing_a_run_needs_no_engine():
    code = (
        "import sys, rlreason.cli, rlreason.config, rlreason.loop, rlreason.stages, rlreason.pipeline, rlreason.report;"
        "print(*sys.modules)"
    )
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & HEAVY


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_says_what_it_is_for(room):
    assert ast.get_docstring(ast.parse(room.read_text()))
