# Two commands set everything up on a fresh machine: `make demo` and `make test`.
# They need python3 (>= 3.11) with venv, make, and a package index that pip can reach.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written last, so that an installation which was interrupted is done again.
READY := $(VENV)/.ready
RABBITMQ := /usr/lib/rabbitmq/bin/rabbitmq-server
PATHS := flowstone tasks examples benchmarks migrations tests celeryconfig.py

.DEFAULT_GOAL := help
.PHONY: help install demo dev test test-slow test-chaos test-rabbitmq lint types bench browser lock clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

install: $(READY) ## Make .venv and install everything into it, pinned by hash

demo: $(READY) ## Run a month of real flights through real workers, and show the report
	$(BIN)/python -m examples.flights

dev: $(READY) ## Run PostgreSQL, Valkey, worker, beat and Flower until Ctrl-C, with the flights
	FLOWSTONE_ASSETS=$${FLOWSTONE_ASSETS:-examples.flights.assets} $(BIN)/flowstone dev

test: $(READY) lint types ## Check style, types and layers, then run the tests, four random scenarios included
	$(BIN)/python -m pytest --numprocesses 3 -m "not slow" --ignore tests/chaos
	$(BIN)/python -m pytest tests/chaos

test-slow: $(READY) ## The tests that take long: deaths, stops, outages and long queues on real workers
	$(BIN)/python -m pytest --numprocesses 3 -m slow

test-chaos: $(READY) ## Random graphs under random faults: 200 scenarios, or N=20, or SEED=29
	CHAOS_N=$(or $(N),200) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest tests/chaos

test-rabbitmq: $(RABBITMQ) $(READY) ## The tests of workers on RabbitMQ, which is installed for that (Debian, as root)
	@echo "The tests start a RabbitMQ of their own on 127.0.0.1, and stop it. First with Valkey for results:"
	TEST_BROKER=rabbitmq $(BIN)/python -m pytest --numprocesses 2 tests/worker
	@echo "The same with PostgreSQL for results:"
	TEST_BROKER=rabbitmq TEST_RESULTS=postgresql $(BIN)/python -m pytest --numprocesses 2 tests/worker

$(RABBITMQ):
	@command -v apt-get >/dev/null && test "$$(id -u)" = 0 || \
		{ echo "RabbitMQ is not here ($@), and is installed on Debian alone, by root: apt-get install rabbitmq-server" >&2; exit 1; }
	@echo "Installing rabbitmq-server by apt-get; Debian may start a service of it, which no test uses."
	@apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rabbitmq-server
	@test -x $@

lint: $(READY) ## Check style and layers
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/lint-imports

types: $(READY) ## Check types
	$(BIN)/mypy

bench: $(READY) ## Measure against plain Celery, some minutes; CASE="..." picks cases
	$(BIN)/python -m benchmarks "$(CASE)"

browser: ## Install Chromium, for the tests of pages, which are skipped without it (Debian, as root)
	@command -v chromium >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium)

lock: $(READY) ## Resolve the dependencies anew into requirements.lock
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --group test --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --upgrade --quiet \
		--output-file requirements.lock

clean: ## Remove .venv and everything that was made, the ledger of the demo as well
	@# Where root's PostgreSQL could not reach this folder, it keeps its data elsewhere, behind a link.
	@if [ -L .flowstone/postgres ]; then rm -rf "$$(readlink -f .flowstone/postgres)"; fi
	rm -rf $(VENV) .flowstone build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
