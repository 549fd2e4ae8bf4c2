# Everything is made inside .venv; the only things needed beforehand are Python (>= 3.11), make and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
TIMM_MODELS ?= scalablevit_nano scalablevit_tiny scalablevit_small scalablevit

.PHONY: help demo test test-slow test-faults test-lowest timm-suite check format benchmark clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# A stamp per set of extras: installed again whenever pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-train ## train nano on the embedded sample (about three minutes), evaluate it, predict some images
	$(BIN)/scalablevit train sample --out $(RUN) --overwrite
	$(BIN)/scalablevit evaluate $(RUN) sample
	$(BIN)/scalablevit predict $(RUN) $$($(BIN)/python -m scalablevit.sample --count 6)
	@echo
	@echo "The run folder is $(RUN): weights in model.safetensors, scores in evaluate.json, the report is $(RUN)/report/index.html."

test: $(VENV)/.installed-dev ## the tests (about ten minutes on two cores)
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(VENV)/.installed-dev ## the tests that take longer
	$(BIN)/python -m pytest -m slow

test-faults: $(VENV)/.installed-dev ## runs that are killed, starved and fed nonsense, as processes of their own
	$(BIN)/python -m pytest -m slow tests/faults

test-lowest: ## the tests with the lowest supported versions, in a virtual environment of their own
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint tests/lowest-versions.txt
	.venv-lowest/bin/python -m pytest -n auto -m "not slow"

timm-suite: $(VENV)/.installed-dev ## timm's own tests of models, run against ours (TIMM_MODELS=... for others)
	$(BIN)/python -m tests.timm_suite $(TIMM_MODELS)

check: $(VENV)/.installed-dev ## format, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/.installed-dev ## speed and memory against vit-pytorch, side by side
	$(BIN)/python benchmarks/against_references.py

clean: ## remove what the targets made, but no runs
	rm -rf .venv .venv-lowest dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
