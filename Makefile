# The commands of the README. Each makes .venv from the lock files first, if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := rlreason tests benchmarks recipes requirements docs/r1_curves.py
TESTS ?= e2e or not e2e

.PHONY: env quickstart test lint check chaos contracts bench gpu-check lock
env: $(READY)

$(READY): requirements/cpu.lock requirements/dev.lock requirements/install.sh pyproject.toml
	PYTHON=$(PYTHON) requirements/install.sh $(VENV)
	touch $@

quickstart: env  # a small model learns to reason: accuracy before and after, and a report
	$(BIN)/rlreason train recipes/quickstart.yaml --fresh

test: env  # every test; TESTS="not long" leaves out the long ones
	$(BIN)/pytest -n auto -m "($(TESTS)) and not e2e"
	$(BIN)/pytest -m "($(TESTS)) and e2e"

lint: env  # format, lint, types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

check: lint  # the same, and the tests that start no engine
	$(BIN)/pytest -q -n auto -m "not e2e"

chaos: env  # every fault of the catalogue with the real parts, and the table in docs/reliability.md; CASES="28 45" runs these
	$(BIN)/python tests/chaos $(CASES)

bench: env  # a step beside the same work without a framework, and the table in benchmarks/RESULTS.md; CASES="1m 10m" runs these
	$(BIN)/python benchmarks $(CASES)

contracts: env  # what is called in vLLM, DeepSpeed, Ray and torch, against the CUDA wheels; CONTRACTS=--install-lock tries gpu.lock
	$(BIN)/python tests/contracts $(CONTRACTS)

gpu-check:  # the first thing to run on a GPU: in $(VENV) if that has the CUDA build of vLLM, else in the active environment
	@python=$(BIN)/python; \
	$$python -c 'from importlib.metadata import version; version("vllm")' 2>/dev/null || python=$(PYTHON); \
	$$python benchmarks/gpu_check $(GPU_CHECK)

lock:  # pin anew what pyproject.toml asks for
	requirements/lock.sh
