# Two commands do everything on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Every version is pinned; the same file constrains the build environment.
LOCK := requirements.lock
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint types docs bench clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## .venv with whycam (.venv/bin/whycam) and everything to develop it

$(STAMP): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(LOCK) $(BIN)/python -m pip install --quiet --requirement $(LOCK) --editable '.[dev]'
	@touch $@

demo: install ## the study on bundled weights and images, offline; the report lies in demo/
	$(BIN)/whycam demo --out demo

# Two processes with one thread each: much of the suite waits for processes, and small networks gain nothing by threads.
test: install ## the test suite (under ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist worksteal

test-all: install ## the slow tests too
	$(BIN)/python -m pytest

lint: install ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## strict types
	$(BIN)/mypy

docs: install ## the documentation site, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install ## measured ratios: what an explanation costs beside a bare forward pass
	$(BIN)/python benchmarks/explain_cost.py

clean: ## remove what the targets above made
	rm -rf $(VENV) demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
