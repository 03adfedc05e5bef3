# `make help` lists the targets. Everything runs in .venv, which `setup` makes.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup build run test lint format types fault e2e bench sanitize proto dist clean browser

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

NATIVE := $(wildcard src/gputel/_native/*.pyx src/gputel/_native/*.pxd src/gputel/_native/*.h src/gputel/_native/simnvml.c)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gputel needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing: sudo apt-get install python3-venv python3-dev" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for the tools and the package itself; it is redone when what it is made of changes.
$(VENV)/.installed: $(BIN)/python pyproject.toml setup.py constraints.txt $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel cython numpy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[test,lint]'
	@touch $@

setup: $(VENV)/.installed ## make .venv with gputel, its kernels and its tools

build: $(VENV)/.installed ## build the native kernels in place
	$(BIN)/python setup.py --quiet build_ext --inplace

run: setup ## start the whole pipeline here (ARGS="--gpus 8 --hz 10" to change it)
	$(BIN)/gputel up $(ARGS)

browser: # Chromium for the browser tests, where it is missing and we may install it
	@if [ -z "$(CHROMIUM)" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing chromium for the browser tests"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	  else echo "no chromium here: the browser tests will be skipped (apt-get install chromium)"; fi; fi

test: setup browser ## run all tests
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## ruff, mypy strict, cython-lint, import-linter, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint src/gputel/_native
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/mypy

format: setup ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy only
	$(BIN)/mypy

fault: setup ## the tests that kill processes
	$(BIN)/python -m pytest tests/fault $(ARGS)

e2e: setup browser ## the tests in a real browser
	$(BIN)/python -m pytest tests/e2e $(ARGS)

bench: setup ## micro-benchmarks against the stored baseline; prints what got slower
	$(BIN)/python -m benchmarks.micro $(ARGS)

sanitize: setup ## the kernels' tests on a build with ASan, UBSan and all checks
	GPUTEL_DEBUG=1 $(BIN)/python setup.py --quiet build_ext --build-lib build/debug
	PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	GPUTEL_NATIVE_DIR=build/debug/gputel/_native $(BIN)/python -m pytest -p no:cacheprovider tests/property tests/differential $(ARGS)

proto: setup ## regenerate src/gputel/_proto from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=src/gputel/_proto --pyi_out=src/gputel/_proto $$(cd proto && find . -name '*.proto' | sed 's|^\./||')

dist: setup ## sdist and wheel in dist/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build
	$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## remove what was built (not the data)
	rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src -name '*.so' -delete
	find src/gputel/_native -name '*.c' ! -name simnvml.c -delete
