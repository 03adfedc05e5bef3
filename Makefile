# `make help` lists the targets. Everything runs in .venv, which the targets make themselves.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CLANG ?= clang
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup build run test lint format types fault e2e bench sanitize tsan fuzz proto dist clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

NATIVE := $(wildcard src/gputel/_native/*.pyx src/gputel/_native/*.px[di] src/gputel/_native/*.h \
	src/gputel/_native/simnvml/*.c src/gputel/_native/simnvml/*.h)

$(BIN)/python:
	@tools/prerequisites $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# One stamp a layer, redone when what it is made of changes: the package with its kernels is
# all that `make run` waits for.
$(VENV)/.run: $(BIN)/python pyproject.toml setup.py constraints.txt $(NATIVE)
	@echo "installing gputel and building its kernels into $(VENV)"
	@$(PIP) setuptools wheel cython numpy
	@$(PIP) --no-build-isolation -e .
	@touch $@

# By name: what is there stays, so that the kernels are not built again. setuptools-scm builds
# gpustat, which the registry has as source only.
$(VENV)/.test: $(VENV)/.run
	@$(PIP) setuptools-scm
	@$(PIP) --no-build-isolation 'gputel[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	@$(PIP) --no-build-isolation 'gputel[lint]'
	@touch $@

setup: $(VENV)/.lint ## make .venv with gputel, its kernels and all tools

build: $(VENV)/.run ## build the native kernels in place
	$(BIN)/python setup.py --quiet build_ext --inplace

run: $(VENV)/.run ## start the whole pipeline here (ARGS="--gpus 8 --hz 10")
	@exec $(BIN)/gputel up $(ARGS)

# Much of a test is waiting. Whole files go to a worker each, in their order: the short ones are
# last.
JOBS ?= 2
test: $(VENV)/.test ## run all tests (JOBS=0: in one process, with -s and --pdb)
	@tools/browser
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.lint ## ruff, mypy strict, cython-lint, import-linter, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint src/gputel/_native
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/mypy

format: $(VENV)/.lint ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.lint ## mypy only
	$(BIN)/mypy

MINUTES ?= 0
fault: $(VENV)/.test ## the tests that kill processes (MINUTES=60: random histories for so long each)
	$(BIN)/python -m pytest tests/fault -s --minutes $(MINUTES) $(ARGS)

e2e: $(VENV)/.test ## the tests in a real browser
	@tools/browser
	$(BIN)/python -m pytest tests/e2e $(ARGS)

bench: $(VENV)/.test ## micro-benchmarks against the stored baseline: what got slower
	$(BIN)/python -m benchmarks.micro $(ARGS)

# The kernels built with ASan, UBSan and all checks, and what runs a command on them.
SANITIZED = GPUTEL_DEBUG=1 $(BIN)/python setup.py --quiet build_ext --build-lib build/debug && \
	PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	GPUTEL_NATIVE_DIR=build/debug/gputel/_native

sanitize: $(VENV)/.test ## the kernels' tests on a build with ASan, UBSan and all checks
	$(SANITIZED) $(BIN)/python -m pytest -p no:cacheprovider tests/property tests/differential \
	  tests/unit/simnvml tests/unit/nvml tests/unit/test_hot_rows.py $(ARGS)

tsan: $(VENV)/.test ## ring, sweeps and simulated driver under the thread sanitizer (SECONDS=60)
	HAMMER_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest tests/integration/test_nvml_hammer.py \
	  tests/integration/test_simnvml_hammer.py -k "thread" $(ARGS)

fuzz: $(VENV)/.test ## damage chunks at random on that build (SECONDS=600), with clang by libFuzzer too
	$(SANITIZED) FUZZ_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest -p no:cacheprovider -s \
	  tests/differential/test_codec_fuzz.py $(ARGS)
	@command -v $(CLANG) >/dev/null || { echo "without $(CLANG), libFuzzer is left out"; exit 0; }; \
	set -ex; mkdir -p build/fuzz/corpus; \
	$(CLANG) -std=c11 -O1 -g -fno-strict-aliasing -fsanitize=fuzzer,address,undefined \
	  -fno-sanitize-recover=undefined -Isrc/gputel/_native tests/fuzz/chunk_read.c -lm \
	  -o build/fuzz/chunk_read; \
	build/fuzz/chunk_read -max_total_time=$(or $(SECONDS),60) -max_len=4096 \
	  -artifact_prefix=build/fuzz/ build/fuzz/corpus tests/data/v1 tests/data/v2

proto: $(VENV)/.lint ## regenerate src/gputel/_proto from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=src/gputel/_proto \
	  --pyi_out=src/gputel/_proto $$(cd proto && find . -name '*.proto' | sed 's|^\./||')

dist: $(VENV)/.run ## sdist and wheel in dist/
	@$(PIP) build
	$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## remove what was built (never the data)
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src -name '*.so' -delete -o -name '*.so.1' -delete
