# One command each, from a fresh clone: what is missing is installed first, what is there is left alone.
#
#   make demo        a federation of institutions on real pictures, on this machine, with a report at the end
#   make test        the default tests
#   make check       everything CI checks after the tests: lint, types, contracts, stub drift
#
# Needs: make and Python 3.11 or 3.12 with its venv module. PYTHON=/path/to/python chooses another interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then echo $$p; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -qq --constraint constraints.txt
PEERS := .venv-peers
MINUTES ?= 120
SEED ?= 1
PROTOS := $(wildcard protos/*.proto)

.PHONY: help demo test test-slow test-gpu soak check lint format types contracts drift protos bench-quick peers wheel lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# --- set-up -----------------------------------------------------------------------------------------------------------
# The stamps carry the date of the last installation; a changed pyproject.toml or constraints.txt makes them stale.

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo 'Fedloom needs Python 3.11 or 3.12 and found neither. Install one, or name it: make PYTHON=/path/to/python3.12' >&2; \
		exit 1; fi
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'Python has no venv module here. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }

$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing Fedloom and the demo (once; a few minutes, mostly PyTorch)'
	@$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing Fedloom with its development tools (once; a few minutes, mostly PyTorch)'
	@$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.demo-installed

# --- what people want -------------------------------------------------------------------------------------------------

demo: $(VENV)/.demo-installed ## run the built-in federation
	@$(BIN)/fedloom simulate $(ARGS)

test: $(VENV)/.dev-installed ## run the default tests
	@$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.dev-installed ## run the slow tests
	@$(BIN)/python -m pytest -m 'slow and not gpu and not peers' $(ARGS)

test-gpu: $(VENV)/.dev-installed ## run the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

soak: $(VENV)/.dev-installed ## two hours of a federation with kills and broken links; MINUTES=15 for less, SEED=2 for others
	@FEDLOOM_SOAK_MINUTES=$(MINUTES) FEDLOOM_SOAK_SEED=$(SEED) $(BIN)/python -m pytest -m soak -s tests/e2e/test_soak.py $(ARGS)

check: lint types contracts drift ## everything CI checks after the tests

lint: $(VENV)/.dev-installed ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev-installed ## bring the sources into the project's format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

types: $(VENV)/.dev-installed ## mypy --strict
	@$(BIN)/mypy

contracts: $(VENV)/.dev-installed ## who may import whom
	@$(BIN)/lint-imports

drift: $(VENV)/.dev-installed ## are the committed stubs those of the .proto files?
	@$(BIN)/python -m pytest -q tests/contract/test_stub_drift.py

protos: $(VENV)/.dev-installed ## regenerate the committed stubs
	@$(BIN)/python -m grpc_tools.protoc --proto_path=. --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. $(PROTOS)

bench-quick: $(VENV)/.dev-installed ## every benchmark in its quick form, under a minute each
	@for path in benchmarks/[a-z]*.py; do name=$$(basename $$path .py); \
		grep -q -- '--quick' $$path || continue; \
		echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name --quick; done

peers: $(PEERS)/.installed ## other projects' merging rules in an environment of their own; then .venv-peers/bin/python -m benchmarks.merging

$(PEERS)/.installed: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo 'Fedloom needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.12 peers' >&2; exit 1; fi
	@[ -x $(PEERS)/bin/python ] || $(PYTHON) -m venv $(PEERS)
	@echo "Installing ByzFL and Flower into $(PEERS) (once; a few minutes, mostly PyTorch)"
	@$(PEERS)/bin/python -m pip install --disable-pip-version-check -qq --constraint constraints.txt \
		--editable . 'byzfl==0.0.11' 'flwr>=1.41,<1.43' psutil pytest pytest-asyncio pytest-timeout hypothesis
	@touch $@

wheel: $(VENV)/.dev-installed ## build the wheel into dist/
	@$(BIN)/python -m hatchling build --target wheel

lock: $(VENV)/.dev-installed ## resolve every extra afresh into constraints.txt (keeps its head)
	@$(BIN)/python -m pip install --disable-pip-version-check -qq --dry-run --ignore-installed --report $(VENV)/lock.json \
		--constraint <(grep '#pin' constraints.txt) --editable '.[demo,simulation,gpu,dev]'
	@{ sed '/^$$/q' constraints.txt; $(BIN)/python -c 'import json, sys; \
		held = {l.split("==")[0]: l.rstrip() for l in open("constraints.txt") if "#pin" in l}; \
		found = {i["metadata"]["name"].lower().replace("_", "-"): i["metadata"]["version"].split("+")[0] \
		for i in json.load(open("$(VENV)/lock.json"))["install"]}; [found.pop(n, "") for n in ("fedloom", "triton")]; \
		print("\n".join(held.get(n, f"{n}=={v}") for n, v in sorted(found.items())))'; } > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

clean: ## remove the environment and every cache
	@rm -rf $(VENV) $(PEERS) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
