# Every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv lock lint test test-unit test-contract test-lab test-molecule demo bench docs lab-up lab-down clean

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:  ## make .venv from the lock, with both distributions in it
	@scripts/venv.sh

lock:  ## resolve requirements.lock and proxy/requirements.lock anew
	@scripts/lock.sh

lint: venv  ## ruff (all rules) and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-unit: venv  ## unit tests: under a minute, no root
	$(PYTEST) tests/unit
