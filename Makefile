# `make run` and `make test` need python3 (3.11 or newer) and set everything else up in .venv.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help run test lint format soak fuzz compiled bench coverage examples tables messages clean

help:
	@echo 'make run       the story: the standard library imported, changed, read back in time, backed up'
	@echo 'make test      all tests (under ten minutes on two cores)'
	@echo 'make lint      ruff and mypy'
	@echo 'make format    ruff, writing'
	@echo 'make soak      the long versions of the random tests, a minute under load and one of overload with memory flat, 400 kills, etcdctl check perf'
	@echo 'make fuzz      seven targets under atheris for half an hour in all (FUZZ_SECONDS), to go on with what the last run left'
	@echo 'make compiled  the hot modules compiled with mypyc in a copy of all, and the tests on that: a C compiler is needed'
	@echo 'make coverage  branch coverage of mvccstore/'
	@echo 'make bench     the core benchmark, as a table'
	@echo 'make examples  those of docs/examples whose language is installed, with clients from their registries'
	@echo 'make tables    the generated parts of docs/, by runs against real etcds'
	@echo 'make messages  the generated modules of mvccstore/server/messages, from its proto/'
	@echo 'make clean     remove .venv and caches'

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("mvccstore needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' --group dev
	@touch $@

run: .venv/ready
	$(BIN)/mvccstore demo

test: .venv/ready
	$(BIN)/python -m pytest -q -n auto --dist worksteal

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

soak: export SOAK_SUMMARIES := .pytest_cache/soak.txt
soak: .venv/ready
	@rm -f $(SOAK_SUMMARIES)
	$(BIN)/python -m pytest -q -s -m soak tests/soak tests/wire tests/crash
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -n auto --dist worksteal tests/stateful tests/property tests/crash tests/wire/test_differential_random.py tests/wire/test_auth_random.py
	@cat $(SOAK_SUMMARIES)

# atheris has wheels for few platforms only: where it cannot be had, the run says so and fails.
fuzz: .venv/ready
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary atheris atheris || true
	$(BIN)/python -m tests.fuzz.run

# Without the doctests: to look for them, pytest reads what no function of C has.
compiled: .venv/ready
	$(BIN)/python -m tools.compiled build/tested
	cd build/tested && PYTHONPATH=$(CURDIR)/build/tested $(CURDIR)/$(BIN)/python -m pytest -q -n auto --dist worksteal tests

coverage: .venv/ready
	$(BIN)/python -m pytest -q -p no:mvccstore --cov --cov-report=term  # the plugin would import it before it is measured

bench: .venv/ready
	$(BIN)/python -m benchmarks core

examples: .venv/ready
	$(BIN)/python -m pytest -q -rs -m soak tests/docs

tables: .venv/ready
	$(BIN)/python -m tools.compatibility
	$(BIN)/python -m tools.etcdctl_page

messages: .venv/ready
	$(BIN)/python tools/generate_messages.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov dist build
