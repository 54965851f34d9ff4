# One word for each thing a contributor does. `make` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help install hooks check fix test test-slow coverage bench docs lock build ci

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install:  ## make .venv with the package and its development tools, in the versions that CI uses
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c requirements/dev.txt -e ".[dev]"

hooks:  ## run the quick checks at each commit
	$(BIN)/pip install -q pre-commit
	$(BIN)/pre-commit install

check:  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix:  ## correct what ruff can correct, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test:  ## all tests but the slow ones
	$(BIN)/python -m pytest

test-slow:  ## the slow tests
	$(BIN)/python -m pytest -m slow

coverage:  ## all tests, with branch coverage and its floor
	$(BIN)/python -m pytest -m "" --cov

bench:  ## the speed, beside bare NumPy and bare calls, into benchmarks/results
	for each in speed chat_overhead llamaindex_overhead; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$each.py --record || exit 1; \
	done

docs:  ## check that the README, the architecture and the examples are true: every block and example runs
	$(BIN)/python -m pytest tests/test_readme.py tests/test_examples.py tests/test_packaging.py

lock:  ## write requirements/dev.txt again, from the newest versions
	$(PYTHON) -m venv --clear $(VENV)-lock
	$(VENV)-lock/bin/pip install -q -e ".[dev]" codespell pytest-randomly
	(sed -n '/^#/p' requirements/dev.txt; $(VENV)-lock/bin/pip freeze --exclude-editable) > requirements/dev.new
	mv requirements/dev.new requirements/dev.txt
	rm -r $(VENV)-lock

build:  ## the wheel and the source distribution, in dist/
	$(BIN)/python -m build

ci:  ## everything that must hold before a change lands, on a clean clone
	bash .ci/run
