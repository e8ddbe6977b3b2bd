# Each target sets up what it needs in .venv, pinned by constraints.txt. Needed beforehand: Python 3.11 or later.
# The network is needed for the set-up alone, and again only when pyproject.toml or constraints.txt change.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= emoji-fast
PROMPT ?= a red heart
OUT ?= sample.png
WORKERS ?= 2

# `command $(call why,why)`: a command that fails says why. No commas in the sentence.
why = || { printf 'make: %s\n' '$(1)' >&2; exit 1; }
again = its own message is above; run it again to go on where it stopped

# What was installed is noted by the contents of these files, so that a checkout that only renews their dates needs no
# network.
WANTED = cat pyproject.toml constraints.txt | cksum
install = @test "$$(cat $@ 2>/dev/null)" = "$$($(WANTED))" || $(BIN)/pip install --quiet -c constraints.txt -e "$(WHAT)" \
	$(call why,pip could not install what this needs: its own message is above. Setting up needs the network; run make again when it is there.)

# Many workers with one thread each. What Python compiles is kept, whatever the caller's settings: the tests start many
# processes, and each would compile it anew. What was skipped is said at the end, with its reason: the studio's pages are,
# where there is no chromium.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
	--max-worker-restart 0 --durations 10 -r s
failed = some tests failed: they are listed above. One alone is run by .venv/bin/python -m pytest FILE::TEST

.DEFAULT_GOAL := help
.PHONY: help sample test test-all lint docs dist sbom bench paper digits clean

help:  ## say what there is
	@echo 'make TARGET, where TARGET is one of'
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 12
	@echo 'The first one that needs it sets up .venv, which takes a few minutes and the network.'

.venv/.python:
	@command -v '$(PYTHON)' >/dev/null \
		$(call why,there is no $(PYTHON) here: install Python 3.11 or later or name one as in make PYTHON=python3.12)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		$(call why,Python 3.11 or later is needed and $(PYTHON) is older: name another one as in make PYTHON=python3.12)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		$(call why,$(PYTHON) has no venv module: install it (on Debian and Ubuntu by apt install python3-venv))
	@$(PYTHON) -m venv .venv $(call why,the virtual environment .venv could not be made: the message is above)
	@touch $@

.venv/.core: WHAT = .
.venv/.core: .venv/.python pyproject.toml constraints.txt
	$(install)
	@$(WANTED) > $@

.venv/.all: WHAT = .[all,test]
.venv/.all: .venv/.python pyproject.toml constraints.txt
	$(install)
	@$(WANTED) | tee $@ > .venv/.core

.venv/.docs: WHAT = .[all,test,docs]
.venv/.docs: .venv/.python pyproject.toml constraints.txt
	$(install)
	@$(WANTED) | tee $@ .venv/.all > .venv/.core

.venv/.release: WHAT = .[release]
.venv/.release: .venv/.core
	$(install)
	@$(WANTED) > $@

sample: .venv/.core  ## draw a picture: make sample PROMPT="a grinning face" OUT=sample.png, or MODEL=digits
	@$(BIN)/ddim sample $(if $(filter digits%,$(MODEL)),,"$(PROMPT)") --model $(MODEL) --out $(OUT) \
		$(call why,nothing was drawn: ddim says why above)

test: .venv/.all  ## run the fast tests, in minutes, by two processes: WORKERS=8 on a larger machine
	@$(PYTEST) $(call why,$(failed))

test-all: .venv/.all .venv/.release  ## run the slow tests too, in tens of minutes, and all that the README shows
	@$(PYTEST) -m "slow or not slow" $(call why,$(failed))
	@$(BIN)/python scripts/newcomer $(call why,something that the README shows does not run: it is shown above)

lint: .venv/.all  ## check formatting, lint and types
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

docs: .venv/.docs  ## make the site of docs/ in build/docs, strictly: a minute or two
	@cd docs/_ext && $(CURDIR)/$(BIN)/python -m doctest *.py
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs/$$($(BIN)/python -c 'import ddim; print(ddim.__version__)') \
		$(call why,the site has faults: each is a warning above)
	@echo 'The site is in build/docs: open build/docs/index.html'

dist: .venv/.release  ## build the wheel and the source distribution into dist, and check them: RELEASE=1 to publish them
	@$(BIN)/python scripts/dist $(if $(RELEASE),--release) $(call why,what was built is not to be published: each fault is above)

sbom: .venv/.all .venv/.release  ## list all that ddim installs with versions and licences in build/sbom.json (CycloneDX)
	@$(BIN)/python scripts/sbom $(call why,the list could not be made: the message is above)

bench: .venv/.all  ## measure against diffusers and write docs/benchmarks.md
	@$(BIN)/python benchmarks/run.py --write docs/benchmarks.md $(call why,the benchmarks ended early: the message is above)

paper: .venv/.all  ## measure everything the DDIM paper claims, into docs/: hours, resumable; QUICK=1 for minutes
	@$(BIN)/python scripts/paper.py $(if $(QUICK),--quick) $(call why,the figures of the paper ended early: $(again))

digits: .venv/.all  ## train the bundled digits model anew: about a quarter of an hour on two cores, resumable
	@$(BIN)/python scripts/digits/train.py $(call why,training ended early: $(again))

clean:  ## remove what was set up, not what was made
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -prune -exec rm -rf {} +
