# One command each; every target works from a fresh clone with Python >= 3.11 and make.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/bash

VENV    := .venv
BIN     := $(VENV)/bin
WORKERS ?= 2

# The first Python on the path that is new enough; `make install PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)

# Worker processes share the cores, so each computes on one thread. Tests of one xdist_group go to one worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=25

.PHONY: help install demo test test-all lint format bench docs clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed-dev  ## make .venv with detrkit and everything its tests need

demo: $(VENV)/.installed  ## detect blood cells with the embedded model (no download, under a minute)
	$(BIN)/detrkit demo

test: lint  ## lint, strict typing and the tests that CI runs
	$(PYTEST)

test-all: lint  ## the same and the slow tests
	$(PYTEST) -m ""

lint: $(VENV)/.installed-dev  ## ruff check, ruff format --check, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## time the models on this machine
	$(BIN)/python benchmarks/speed.py

docs: $(VENV)/.installed  ## build the documentation into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:  ## remove caches and the environment (never runs/ or data/)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site

# Stamps: nothing is installed again until pyproject.toml changes.
define make_venv
	@test -n "$(PYTHON)" || { echo "detrkit needs Python 3.11 or newer: install it, or make PYTHON=/path/to/python …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv), then repeat."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef

$(VENV)/.installed: pyproject.toml
	$(make_venv)
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(make_venv)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.installed $@
