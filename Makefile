# A new machine needs only Python 3.11 and make: `make demo` and `make test` install everything else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# This file pins every version, also in the build environment.
LOCK := requirements.lock
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint types docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## install whycam (.venv/bin/whycam) and all development tools into .venv

$(STAMP): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(LOCK) $(BIN)/python -m pip install --quiet --requirement $(LOCK) --editable '.[dev]'
	@touch $@

demo: install ## run the study on bundled weights and images, offline; the report is in demo/
	$(BIN)/whycam demo --out demo

# Two processes with one thread each: many tests wait for subprocesses, and threads do not speed up small networks.
test: install ## run the tests except the slow ones (under ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist worksteal

test-all: install ## run all tests, including the slow ones
	$(BIN)/python -m pytest

lint: install ## check the code style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## check the types (mypy, strict)
	$(BIN)/mypy

docs: install ## build the documentation site in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install ## measure the cost of an explanation relative to a bare forward pass
	$(BIN)/python benchmarks/explain_cost.py

clean: ## remove everything that the other targets made
	rm -rf $(VENV) demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
