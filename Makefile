# Needs Python >= 3.11 and make, nothing else: every target sets up .venv by itself, from pinned constraints.
#   make demo    pack, serve, train, break, verify: a tour in under three minutes
#   make check   everything that can be said without running the product: style, types, import rules, budgets, documents
#   make test    the tests that take seconds; make slow: those that take minutes
#   make bench   how close this machine gets to its own limits
#   make clean   forget the environment and everything that was built
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
# Two workers whatever the machine: tests start processes of their own.
JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed
PACKAGES := fastio server/fastio_server client/fastio_client bench/fastio_bench

.PHONY: help demo check test slow bench clean venv

help:
	@sed -n '2,7s/^#   //p' Makefile

venv: $(STAMP)

# The stamp is written last: an install that was interrupted is done again. Without build isolation, what builds the
# package is pinned too.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fastio needs Python >= 3.11, '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 | head -n 1); name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { rm -rf .venv && $(PYTHON) -m venv .venv; } || \
	  { echo "'$(PYTHON) -m venv' failed: is the venv module installed (Debian: python3-venv)?" >&2; exit 1; }
	@echo "installing into .venv (once; a few minutes)"
	@$(BIN)/python -m pip install -qq --constraint constraints.txt hatchling editables
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python client/examples/digits

check: $(STAMP)
	$(BIN)/python -m ruff check --no-cache
	$(BIN)/python -m ruff format --check --no-cache
	$(BIN)/python -m mypy
	MYPYPATH=client/examples/digits $(BIN)/python -m mypy client/examples/digits
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest --doctest-modules $(PACKAGES)
	$(BIN)/python -m pytest tests/contract

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests --ignore tests/contract

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow tests || [ $$? -eq 5 ]  # 5: there is none

bench: $(STAMP)
	$(BIN)/fastio bench io $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build demo-output
