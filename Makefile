# safetyheads: every target does its own set-up; Python >= 3.11 and make are all it needs.
#   make demo       rank the heads of a small chat model and write a scatter plot (minutes)
#   make test       tests, with shapes and types checked at run time, and doctests
#   make notebooks  run all notebooks and store what comes out, figures with a picture beside (an hour; needs Chromium)
#   make check      format, lint, types, tests: everything, notebooks at tiny sizes among them
#   make check-versions   tests with the lowest and the newest allowed libraries, in venvs of their own
# PYTHON=/path/to/python chooses the interpreter, WORKERS=0 runs the tests in one process,
# ARGS="-k floors" is handed to pytest.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.safetyheads-stamp
PYTHON ?=
WORKERS ?= 2
ARGS ?=
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt
# Tests never wait for a Hub that does not answer, one thread each keeps two workers apart, and what one process has
# compiled the next one finds.
TEST_ENVIRONMENT := HF_HUB_OFFLINE=$${HF_HUB_OFFLINE:-1} OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled PYTHONDONTWRITEBYTECODE=

.PHONY: help venv demo test check check-versions format notebooks clean
.DELETE_ON_ERROR:

help:
	@sed -n '2,6p' Makefile | cut -c3-

venv: $(STAMP)

# Interpreters in order of preference: the one asked for, then the versions this set is tested on, the system's first:
# distributions build theirs with optimizations, pyenv does not, and the tests take a quarter longer with it.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		found=; \
		for candidate in $(if $(PYTHON),"$(PYTHON)",/usr/bin/python3.11 python3.11 python3.12 python3.13 python3.14 python3 python); do \
			if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
				>/dev/null 2>&1; then found=$$candidate; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "make: no Python >= 3.11 with venv$(if $(PYTHON), at PYTHON=$(PYTHON), on the PATH)." \
				"Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install" \
				"python@3.12) or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$found" --version); the first time this takes some minutes."; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev,ray,traces,training]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/safetyheads demo

test: $(STAMP)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

check-versions:
	@.ci/versions

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each notebooks/*.py is run from top to bottom, and the .ipynb beside it written. `make test` runs all at tiny sizes.
notebooks: $(STAMP)
	@$(PIP) -e '.[dev,image,ray,traces,training]'
	TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled $(BIN)/python .ci/notebooks.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis safetyheads-demo
	find safetyheads tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
