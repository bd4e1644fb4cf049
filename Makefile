# Every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# The targets share one lab and one .venv: never side by side, even under -j.
.NOTPARALLEL:
.PHONY: help venv lock lint test test-unit test-contract test-compiled test-lab test-molecule fuzz matrix demo bench bench-wire docs lab-up lab-down clean

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

test-unit: venv  ## unit tests, and what the fuzzers once found: no root
	@scripts/packages.sh
	$(PYTEST) -n 2 tests/unit tests/fuzz

test-contract: venv  ## an Ollama (simulated, or OLLAMA_BIN=...) against its contract; the proxy with real clients
	@scripts/packages.sh
	$(PYTEST) $(if $(OLLAMA_URL),,-n 2 --dist worksteal) tests/contract tests/proxy

test-compiled: venv  ## the proxy with its hot modules compiled: the wire's tests, and the proxy's with real clients
	@scripts/packages.sh
	$(PYTEST) tests/compiled

test-lab: venv  ## real systemd hosts: the lab itself, the deploys, the leak test (root on Linux)
	@scripts/need-root.sh test-lab
	$(PYTEST) tests/lab

test-molecule: venv  ## molecule: a lab host converged twice by the deploys, verified through the proxy
	@scripts/need-root.sh test-molecule
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/molecule test --scenario-name default

fuzz: venv  ## fuzz the parsers, the wire and the bodies, each so long (SECONDS=60 TARGETS="requests life" MERGE=1)
	scripts/fuzz.sh $(or $(SECONDS),60) $(TARGETS)

matrix: venv  ## clients that leave at every moment, thousands of times, and gigabytes through (REPEAT=2000 SEED=1)
	MATRIX_REPEAT=$(or $(REPEAT),2000) MATRIX_SEED=$(or $(SEED),1) $(PYTEST) -s tests/proxy/test_matrix.py tests/proxy/test_backpressure.py

test: lint test-unit test-contract test-compiled test-lab test-molecule  ## everything, under 30 minutes on two cores

demo: venv  ## boot a lab of three hosts, provision it, chat through the proxy (KEEP=1 leaves it up)
	@scripts/need-root.sh demo
	@$(BIN)/python -m lab.demo $(if $(KEEP),--keep)

bench-wire: venv  ## the proxy beside nginx, Go, vllm-router and others (QUICK=1: a minute; PYTHON=... for the proxy)
	PYTHON="$(PYTHON)" $(BIN)/python -m bench.wire $(if $(QUICK),--quick) $(BENCH)

bench: venv  ## the quick version of bench-wire
	@$(MAKE) --no-print-directory bench-wire QUICK=1

docs: venv  ## generate docs/reference from the schemas and the programs themselves
	$(BIN)/python scripts/docs.py

LAB ?= lab
HOSTS ?= 3
PROFILE ?= profiles/mixed.yaml

lab-up: venv  ## boot the lab (LAB=name HOSTS=3 PROFILE=profiles/mixed.yaml)
	$(BIN)/python -m lab up --name $(LAB) --hosts $(HOSTS) --profile $(PROFILE)

lab-down: venv  ## take the lab down and leave nothing behind
	$(BIN)/python -m lab down --name $(LAB)

clean:  ## remove what the targets made (the lab's cache under /var/cache stays: CACHE=1 removes it too)
	@if [ -x $(BIN)/python ] && [ "$$(id -u)" = 0 ] && [ -d /var/lib/drover-lab ]; then \
	  for lab in $$(ls /var/lib/drover-lab); do $(BIN)/python -m lab down --name "$$lab"; done; fi
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	@if [ -n "$(CACHE)" ]; then rm -rf /var/cache/drover-lab; fi
