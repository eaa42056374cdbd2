# make demo   the main job on the shipped model: quantize, search, measure, report (runs/demo/report.html)
# make test   what CI runs: formatting, types, layers, tests
# make test-thorough   what it leaves out: every distillation method trained on a mixture
# make claims   what papers of distillation claim, asked of 8x8 digits: every arm that is not in results/ yet, for hours
# make gpu    what needs an accelerator (benchmarks/gpu.yaml), part by part, the most important first; GPU_FLAGS=... is
#             passed on: "--cifar FILE", "layers generation", "--device cpu --size toy"
# make docs   these pages as a site: build/docs/index.html (`.venv/bin/mkdocs serve` has the search too)
# All set up .venv on a fresh machine; a second call goes straight to work. PYTHON=... chooses the interpreter,
# PIP_FLAGS=... is passed to pip install (another index, a local wheel folder).

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test test-thorough docs lint style format claims gpu clean

VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
GPU_FLAGS ?=
CANDIDATES := $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python3.10 python
# One worker a core, one thread a worker (tests/conftest.py); at most eight, for each holds torch in memory.
WORKERS := --numprocesses auto --maxprocesses 8 --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

demo: $(VENV)/.installed
	$(BIN)/fewstep demo

# mypy alone would leave the other cores idle: it runs beside the tests, and what it finds is printed after them.
test: $(VENV)/.installed-dev style
	@$(BIN)/mypy > $(VENV)/types.txt 2>&1 & types=$$!; \
	$(BIN)/python -m pytest $(WORKERS) --durations=10; tests=$$?; \
	wait $$types || { cat $(VENV)/types.txt; exit 1; }; exit $$tests

test-thorough: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(WORKERS) -m thorough

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/make_pages.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The pages are in build/docs/index.html"

claims: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python benchmarks/distillation_claims.py
	$(BIN)/python docs/make_pages.py

gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/gpu.py $(GPU_FLAGS)

lint: style
	$(BIN)/mypy

style: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing fewstep and its pinned dependencies into $(VENV) (a few minutes the first time) ..."
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing fewstep with its development tools into $(VENV) (a few minutes the first time) ..."
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing fewstep with what builds its pages into $(VENV) (a few minutes the first time) ..."
	@$(INSTALL) -e '.[docs]'
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$($$python --version) ..."; \
	        exec $$python -m venv --clear $(VENV); \
	    fi; \
	done; \
	echo "No Python >= 3.10 with venv was found (tried: $(CANDIDATES))." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or say which: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
	exit 1
