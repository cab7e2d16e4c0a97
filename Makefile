# Every target sets up what it needs in .venv, once: `make demo` works on a fresh clone.
#   make PYTHON=python3.12 test                       another Python (3.11 or newer) to build .venv with
#   make RECORDINGS=../shared/recordings/eegmat demo  the demo on a folder of your own recordings
#   make MODEL=adapter space                          the page with another model

PYTHON ?= python3
RECORDINGS ?=
MODEL ?= demo-output/model

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEEPSPEED := $(VENV)/.deepspeed
CHECKED := neurolm_hf scripts tests docs space $(wildcard benchmarks)
TYPED := neurolm_hf scripts space $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help install demo space docs test test-slow lint bench

help:  ## List these targets
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Set up .venv with the pinned versions of constraints.txt

demo: $(INSTALLED)  ## From raw EDF files to answers on held-out subjects, in demo-output/ (RECORDINGS=folder: on yours)
	$(RUN) scripts/demo.py --output demo-output $(if $(RECORDINGS),--recordings "$(RECORDINGS)")

space: $(INSTALLED)  ## The page to click on, with the demo's model (MODEL=folder or Hub id: with another)
	NEUROLM_MODEL="$(MODEL)" $(RUN) space/app.py

docs: $(INSTALLED)  ## The documentation as a site of files, in site/
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "site/index.html"

# Two workers with one thread each: the models of the tests are too small to share a thread pool.
test: $(INSTALLED)  ## The tests that CI runs
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(INSTALLED) $(DEEPSPEED)  ## The tests that take minutes each
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow -n 2 --dist loadfile

lint: $(INSTALLED)  ## Style, formatting and types
	$(RUN) -m ruff check $(CHECKED)
	$(RUN) -m ruff format --check $(CHECKED)
	$(RUN) -m mypy $(TYPED)

bench: $(INSTALLED)  ## Run every script in benchmarks/, one after the other
	@set -e; for script in $$(grep -l __main__ benchmarks/*.py); do echo "== $$script"; $(RUN) "$$script"; done

# PyTorch goes first and alone: installed on its own it can come from a local CPU build,
# and the second call then finds its requirement met.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("This needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt torch==2.13.0
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[test,lint]"
	@touch $@

# DeepSpeed builds itself for the PyTorch that is there, so pip must not build it apart from that.
$(DEEPSPEED): $(INSTALLED)
	$(RUN) -m pip install --quiet -c constraints.txt wheel "setuptools>=80"
	$(RUN) -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[deepspeed]"
	@touch $@
