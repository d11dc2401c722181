# Every target builds .venv from requirements.lock if it is missing or out of date.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
UV_COMPILE = $(VENV)-uv/bin/uv pip compile -q --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-emit-index-url --no-header
.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-chaos test-compose lint up env lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# pip refuses hashes beside a local directory: the lock first, then the project alone.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Ratchet needs Python 3.11 to 3.13; name one: make PYTHON=python3.13")'
	@echo "building $(VENV) (about two minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## the whole loop once, on embedded servers, in about two minutes
	@$(BIN)/ratchet demo

# The slow folders come first in the alphabet, so in its order no worker is left alone with one at the end.
TEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not chaos and not compose" -q
test: $(STAMP) ## every test but the two suites below
	@$(TEST)

coverage: $(STAMP) ## the same, and which lines they reach
	@$(TEST) --cov --cov-report=term

test-chaos: $(STAMP) ## a whole stack under fault after fault, in eight minutes
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m chaos -q tests/chaos

test-compose: $(STAMP) ## the containers for real, in about ten minutes (needs Docker)
	@$(BIN)/python -m pytest -m compose -q -x tests/compose

lint: $(STAMP) ## ruff, mypy, import-linter, alembic check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	@$(BIN)/ratchet migrate --check

up: $(STAMP) ## a running stack on port 8000 that learns from made-up telecom data
	@$(BIN)/ratchet up --data plans --port $(PORT)

env: ## a .env with fresh secrets for docker compose
	@$(PYTHON) -m cli.env

lock: ## renew the four lock files (needs uv's wheel)
	@test -x $(VENV)-uv/bin/uv || { $(PYTHON) -m venv $(VENV)-uv && $(VENV)-uv/bin/pip install -q uv; }
	@$(UV_COMPILE) --upgrade pyproject.toml --extra dev -o requirements.lock
	@$(UV_COMPILE) pyproject.toml --extra api -c requirements.lock -o requirements-api.lock
	@$(UV_COMPILE) pyproject.toml --extra worker --extra flower -c requirements.lock -o requirements-worker.lock
	@echo hatchling | $(UV_COMPILE) - -c requirements.lock -o requirements-build.lock

clean: ## remove what the build made
	@rm -rf $(VENV) $(VENV)-uv .mypy_cache .ruff_cache .pytest_cache .coverage
