# Two commands on a fresh machine: `make demo` and `make test`. Everything else is listed by `make help`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Marks of tests that take the machine for themselves (a Ray, a Prefect server): those run one at a time.
ALONE := ray or prefect

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test test-fast check format bench experiment-selftraining train-demo-model train-semantic train-panoptic train-yolact clean

help:  ## what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## virtual environment with the locked dependencies

# Bytecode is compiled once, here: where the environment forbids Python to keep it, every process that imports torch,
# Ray or Prefect would compile thousands of files again (torchvision: 7.5 s instead of 3.2).
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "visionmill needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies into $(VENV) (torch is large: minutes on the first run)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

lock:  ## compile requirements.lock anew from pyproject.toml (no index address is written)
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra bench --universal --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet --output-file requirements.lock

demo: $(STAMP)  ## the whole thing on embedded data: bucket, segmentation, query, report
	@$(BIN)/visionmill demo

test: $(STAMP)  ## every test (about 17 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not ($(ALONE))"
	@$(BIN)/python -m pytest -m "$(ALONE)"

test-fast: $(STAMP)  ## the tests that start no service
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not ($(ALONE) or s3)"

check: $(STAMP)  ## format, lint, types, fast tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test-fast

format: $(STAMP)  ## let ruff rewrite what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP)  ## throughput against bare loops, Ray Data and Daft (notes land in docs/benchmarks/); models' own code
	@$(BIN)/python -m benchmarks.throughput
	@$(BIN)/python -m benchmarks.panoptic_fuse
	@$(BIN)/python -m benchmarks.yolact
	@$(BIN)/python -m benchmarks.deeplab

experiment-selftraining: $(STAMP)  ## student against a supervised model of the same budget (hours; resumable)
	@$(BIN)/python -m benchmarks.selftraining --controls --equal-images

train-demo-model: $(STAMP)  ## train the shipped model anew (resumable)
	@$(BIN)/python -m modelkit.training.train_demo_model

train-semantic: $(STAMP)  ## train a semantic model on digitscape and report its mIoU (resumable; MODEL=unet|fcn|deeplabv3plus)
	@$(BIN)/python -m modelkit.training.semantic --model $(or $(MODEL),deeplabv3plus)

train-panoptic: $(STAMP)  ## train a panoptic model on digitscape and report its PQ or VPQ (resumable; MODEL=panoptic_fpn|upsnet|vpsnet)
	@$(BIN)/python -m modelkit.training.panoptic --model $(or $(MODEL),upsnet)

train-yolact: $(STAMP)  ## train a YOLACT on digitscape and report its mask AP (resumable)
	@$(BIN)/python -m modelkit.training.onestage

clean:  ## stop local services and remove what the demo and the benchmarks left
	-@test ! -x $(BIN)/visionmill || $(BIN)/visionmill down
	rm -rf .demo .bench .train
