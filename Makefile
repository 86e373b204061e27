# Two commands on a fresh machine: `make demo` and `make test`. Everything else is listed by `make help`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Which builds of torch: empty takes those of the lock (CUDA on Linux), cpu or auto (what this machine has) asks uv for
# others, from torch's own index. They bring their own libraries, so those of the lock are left out.
TORCH ?=
CUDA_LIBRARIES := ^(nvidia-|cuda-|triton)
# Marks of tests that start a Ray or a Prefect server: those run one after the other, beside all others, for they wait
# more than they compute. What they said is printed when all are done.
ALONE := ray or prefect

.DEFAULT_GOAL := help
.PHONY: help setup lock catalogue demo test test-fast check format bench experiment-selftraining experiment-parity experiment-photographs experiment-label-errors experiment-kills train-demo-model ship-demo-model train-demo-points ship-demo-points ship-nuclei train-semantic train-panoptic train-yolact clean

help:  ## what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## virtual environment with the locked dependencies (TORCH=cpu: without CUDA; TORCH=auto: as this machine has it)

# Bytecode is compiled once, here: where the environment forbids Python to keep it, every process that imports torch,
# Ray or Prefect would compile thousands of files again (torchvision: 7.5 s instead of 3.2). In a pipe the installer shows
# no bars: a line every ten seconds says that it goes on.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "visionmill needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@if [ -z "$(TORCH)" ]; then cp requirements.lock $(VENV)/requirements.txt; \
		echo "installing into $(VENV): 3.4 GiB to download, 7.5 GB on disk on Linux, $$(df -Ph . | awk 'NR==2 {print $$4}') free here;"; \
		echo "CUDA's libraries are 2.3 GiB and 4.1 GB of it: a machine without a GPU does without them by make setup TORCH=cpu"; \
	else grep -Ev '$(CUDA_LIBRARIES)' requirements.lock > $(VENV)/requirements.txt; \
		echo "installing into $(VENV): builds of torch for '$(TORCH)' (from torch's own index), 0.6 GiB to download beside them"; fi
	@if [ ! -t 2 ]; then (while sleep 10 >/dev/null 2>&1; do \
		echo "still installing: $$(du -sh $(VENV) 2>/dev/null | cut -f1) on disk so far" >&2; done) & beat=$$!; fi; \
	$(BIN)/uv pip install --compile-bytecode $(if $(TORCH),--torch-backend=$(TORCH)) --python $(BIN)/python --requirement $(VENV)/requirements.txt; \
	code=$$?; [ -z "$$beat" ] || kill $$beat; exit $$code
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

lock:  ## compile requirements.lock anew from pyproject.toml (no index address is written)
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra bench --universal --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet --output-file requirements.lock

catalogue: $(STAMP)  ## what modelkit's own models are, as commands read it without torch
	@$(BIN)/python -m modelkit.listing

demo: $(STAMP)  ## the whole thing on embedded data: bucket, segmentation, landmarks, queries, reports
	@$(BIN)/visionmill demo

test: $(STAMP)  ## every test (about 18 minutes on 2 cores)
	@said=$$(mktemp); $(BIN)/python -m pytest -m "$(ALONE)" >$$said 2>&1 & alone=$$!; \
	trap 'kill $$alone 2>/dev/null; rm -f $$said' EXIT; trap 'exit 130' INT TERM; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not ($(ALONE))"; others=$$?; \
	wait $$alone; alone_rc=$$?; cat $$said; exit $$(( others > alone_rc ? others : alone_rc ))

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

experiment-parity: $(STAMP)  ## what users get beside torchvision, transformers and, where VISIONMILL_REFERENCE_DIR is, the authors' code
	@$(BIN)/python -m benchmarks.parity
	@$(BIN)/python -m pytest -m reference -rP tests/modelkit/reference

experiment-photographs: $(STAMP)  ## what training reaches on real pictures by default, and what the loop adds (DATA=folder of the sets; hours, resumable)
	@$(BIN)/python -m benchmarks.photographs $(DATA) --note docs/benchmarks
	@$(BIN)/python -m benchmarks.photographs_loop $(DATA) --note docs/benchmarks

experiment-label-errors: $(STAMP)  ## planted label errors: which of them evaluate --suspects finds (ten minutes)
	@$(BIN)/python -m benchmarks.label_errors --note docs/benchmarks

experiment-kills: $(STAMP)  ## whole jobs killed in every way, on a folder and on S3 (half an hour)
	@$(BIN)/python -m benchmarks.kills

# Label sets of composed scenes, named by the seed of what is trained on; made once.
SCENES := .train/scenes
MILL := $(BIN)/visionmill
TRAINED = $$(ls -t $(1)/training/runs/*/$(2).safetensors | head -1)

$(SCENES)/train-1/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --style hard --seed 1 --scenes 51200

$(SCENES)/train-%/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --style hard --seed $* --scenes 4000

$(SCENES)/points-16000/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --scenes 16000 --image-format jpg --seed 5

$(SCENES)/points-48000/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --scenes 48000 --image-format jpg --seed 6

$(SCENES)/pairs/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --style hard --seed 11 --scenes 4000 --frames 2

$(SCENES)/test/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --split test --scenes 500

$(SCENES)/test-200/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --split test --scenes 200

$(SCENES)/val/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --split val --seed 2 --scenes 100

$(SCENES)/clips/annotations.json: | $(STAMP)
	@$(MILL) digitscape $(@D) --split test --scenes 20 --frames 12

train-demo-model: $(SCENES)/train-1/annotations.json $(SCENES)/test/annotations.json  ## train the shipped model anew (hours; resumable)
	@$(MILL) train $< .train/demo --recipe digitscape_mask_rcnn --steps 3200 --workers 2
	@$(MILL) evaluate $(call TRAINED,.train/demo,digitscape_mask_rcnn) $(SCENES)/test/annotations.json

ship-demo-model: $(SCENES)/test/annotations.json $(SCENES)/val/annotations.json  ## put what train-demo-model left into the package
	@$(BIN)/python -m benchmarks.shipping digitscape_mask_rcnn $(call TRAINED,.train/demo,digitscape_mask_rcnn) --test $< --val $(word 2,$^)

train-demo-points: FINE = $(MILL) train $(SCENES)/$(1)/landmarks.json $(2) --recipe digitscape_heatmap_fine --steps $(3) --from $(4)
train-demo-points: $(SCENES)/points-16000/annotations.json $(SCENES)/points-48000/annotations.json $(SCENES)/test/annotations.json  ## train the shipped landmark model anew (hours; resumable)
	@$(MILL) train $(<D)/landmarks.json .train/points --recipe digitscape_heatmap --steps 3000
	@$(call FINE,points-16000,.train/points-fine,3000,$(call TRAINED,.train/points,digitscape_heatmap))
	@$(call FINE,points-16000,.train/points-finer,3000,$(call TRAINED,.train/points-fine,digitscape_heatmap_fine))
	@$(call FINE,points-48000,.train/points-finest,4000,$(call TRAINED,.train/points-finer,digitscape_heatmap_fine))
	@$(MILL) evaluate $(call TRAINED,.train/points-finest,digitscape_heatmap_fine) $(SCENES)/test/landmarks.json

ship-demo-points: $(SCENES)/test/annotations.json $(SCENES)/val/annotations.json  ## put what train-demo-points left into the package
	@$(BIN)/python -m benchmarks.shipping digitscape_heatmap $(call TRAINED,.train/points-finest,digitscape_heatmap_fine) \
		--test $(<D)/landmarks.json --val $(SCENES)/val/landmarks.json

ship-nuclei: $(STAMP)  ## put the model of nuclei that experiment-photographs left into the package
	@$(BIN)/python -m benchmarks.shipping nuclei $(call TRAINED,.bench/photographs/dsb2018/whole-0/steps-default,photographs_instance) \
		--test .bench/photographs/dsb2018/whole-0/judged --val .bench/photographs/dsb2018/whole-0/judged

train-semantic: MODEL ?= deeplabv3plus
train-semantic: $(SCENES)/train-21/annotations.json $(SCENES)/test-200/annotations.json  ## train a semantic model and report its mIoU (resumable; MODEL=unet_decoder|fcn|deeplabv3plus)
	@$(MILL) train $< .train/$(MODEL) --recipe digitscape_$(MODEL) --steps 400
	@$(MILL) evaluate $(call TRAINED,.train/$(MODEL),digitscape_$(MODEL)) $(word 2,$^)

train-panoptic: MODEL ?= upsnet
train-panoptic: $(SCENES)/train-11/annotations.json $(SCENES)/pairs/annotations.json $(SCENES)/test-200/annotations.json $(SCENES)/clips/annotations.json  ## train a panoptic model and report its PQ or VPQ (resumable; MODEL=panoptic_fpn|upsnet|vpsnet)
	@$(MILL) train $(SCENES)/$(if $(filter vpsnet,$(MODEL)),pairs,train-11)/panoptic.json .train/$(MODEL) --recipe digitscape_$(MODEL) --steps 500
	@for labels in test-200 $(if $(filter vpsnet,$(MODEL)),clips); do \
		$(MILL) evaluate $(call TRAINED,.train/$(MODEL),digitscape_$(MODEL)) $(SCENES)/$$labels/panoptic.json; done

train-yolact: $(SCENES)/train-21/annotations.json $(SCENES)/test-200/annotations.json  ## train a YOLACT and report its mask AP (resumable)
	@$(MILL) train $< .train/yolact --recipe digitscape_yolact --steps 500
	@$(MILL) evaluate $(call TRAINED,.train/yolact,digitscape_yolact) $(word 2,$^)

clean:  ## stop local services and remove what the demo and the benchmarks left
	-@test ! -x $(BIN)/visionmill || $(BIN)/visionmill down
	rm -rf .demo .bench .train
