# Each target sets up what it needs in .venv, pinned by constraints.txt. Needed beforehand: Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= emoji
PROMPT ?= a red heart
OUT ?= sample.png

.PHONY: help sample test test-all lint bench paper digits clean

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; have " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.core: .venv/.python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/.all: .venv/.python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e ".[all,test]"
	@touch $@ .venv/.core

sample: .venv/.core  ## set up, and draw: make sample PROMPT="a grinning face" OUT=sample.png, or MODEL=digits
	$(BIN)/ddim sample $(if $(filter digits,$(MODEL)),,"$(PROMPT)") --model $(MODEL) --out $(OUT)

test: .venv/.all  ## set up, and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

test-all: .venv/.all  ## the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m "slow or not slow"

lint: .venv/.all  ## formatting, lint and types
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

bench: .venv/.all  ## measure against diffusers and write docs/benchmarks.md
	$(BIN)/python benchmarks/run.py --write docs/benchmarks.md

paper: .venv/.all  ## everything the DDIM paper claims, measured, into docs/ (hours; resumable; QUICK=1 for minutes)
	$(BIN)/python scripts/paper.py $(if $(QUICK),--quick)

digits: .venv/.all  ## train the bundled digits model anew (about a quarter of an hour on two cores; resumable)
	$(BIN)/python scripts/digits/train.py

clean:  ## remove what was set up, not what was made
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
