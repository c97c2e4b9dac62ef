# make quickstart   set up, then train and evaluate the embedded example: a table, a plot, an adapter
# make demo-pdf     a folder of PDFs -> ingest, train, evaluate on files never trained on (FOLDER=..., else a Debian package)
# make test         set up, then lint and the quick tests (what CI runs);  make test-all: the slow ones too
# make docs        the pages of docs/ as a site in site/; a broken link fails
# make lint        style, types, and which folder may import which;  make clean: what can be made again
#
# The environment is .venv, made from pyproject.toml and constraints.txt when it is missing, unfinished or outdated.
# PYTHON=...     the Python to make it with (3.11 or newer)
# PIP_FLAGS=...  passed on to pip, for an index or wheel folder of your own
# ARGS=...       passed on to pytest
# WORKERS=2      processes that the tests are shared among, a file of them at a time; 0 = one, in this process

PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP_FLAGS ?=
ARGS ?=
WORKERS ?= 2
export PIP_FLAGS

BIN := $(CURDIR)/.venv/bin
# accelerate uses one thread where none is named, and tests are fastest with one
THREADS = $(or $(OMP_NUM_THREADS),$(shell $(PYTHON) tools/environment.py threads))
QUIET = TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
TESTS = env OMP_NUM_THREADS=1 $(QUIET) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help environment quickstart demo-pdf test test-all lint docs clean
help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

environment:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer on the PATH. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) tools/environment.py

quickstart: environment
	PATH="$(BIN):$$PATH" $(QUIET) OMP_NUM_THREADS=$(THREADS) accelerate launch recipes/quickstart.yaml

demo-pdf: environment
	PATH="$(BIN):$$PATH" $(QUIET) OMP_NUM_THREADS=$(THREADS) tools/demo_pdf.sh $(FOLDER)

test: lint docs
	$(TESTS) $(ARGS)

test-all: lint docs
	$(TESTS) -m "" $(ARGS)

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: environment
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf build dist site *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@echo "kept: .venv and runs/ (remove them by hand)"
