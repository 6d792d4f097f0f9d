# Everything runs from .venv, which `make install` makes; nothing outside the tree is changed but caches.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV_VERSION := 0.13.9
PYTEST := $(BIN)/python -m pytest
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate pyproject.toml
BUILDER ?= $(notdir $(firstword $(foreach name,docker podman buildah,$(shell command -v $(name)))))
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.DEFAULT_GOAL := help

help: ## Show every target with its line
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: .venv/installed ## Install everything into .venv, from the locked requirements

.venv/installed: requirements/all.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@echo "install   a virtual environment in .venv, then every package of requirements/all.txt (2 GB the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/all.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: install ## Fine-tune a real model on real data, on this machine, without a cluster
	@$(BIN)/python scripts/quickstart $(if $(FRESH),--fresh)

cluster: install ## Bring up a real Kubernetes with two nodes and S3 on this machine (needs root)
	@$(BIN)/python -m tests.cluster.local up

demo: install ## Install the operator on that cluster and run a job on two nodes: helm, kubectl, Succeeded
	@$(BIN)/python scripts/demo

cluster-down: ## Take it down, without a trace
	@$(BIN)/python -m tests.cluster.local down

test: install ## Run every test (one case per behaviour)
	$(BIN)/python -m tests.tiers -m "not matrix" --durations=40

test-all: install ## Run every test and the matrices
	$(BIN)/python -m tests.tiers --durations=40

test-fast: install ## Run the unit tests and one smoke test of each other tier (3 minutes)
	$(BIN)/python -m tests.tiers -m "smoke and not matrix"

test-unit: install ## Run the tests that need no process of their own (five minutes)
	$(PYTEST) tests/unit

test-real: install ## Tune a real pretrained decoder (opt-in: downloads 350 MB under terms of their own; RECORD=1 keeps the figures)
	$(BIN)/python -m tests.real $(if $(RECORD),--record)

test-serve: install ## Let a real vLLM serve exported models (opt-in: installs vLLM for CPUs beside .venv, 5.9 GB)
	$(BIN)/python -m tests.serve

lint: install ## Check style, types, import rules, spelling and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m tests.prose

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: install ## Write the files that are made from the models and the chart: CRD, manifests, reference
	$(BIN)/python -m finetune_api.crd > manifests/base/crd.yaml
	$(BIN)/python -m finetune_api.reference > docs/reference/finetunejob.md
	$(BIN)/python -m finetune_operator.condition_pages > docs/reference/conditions.md
	$(BIN)/python -m tests.bad_inputs > docs/bad-inputs.md
	$(BIN)/python -m tests.families
	$(BIN)/python -m tests.plans
	$(BIN)/python charts/generate.py "$$($(BIN)/python -m tests.tools helm)"
	$(BIN)/python -m tests.docs

lock: install ## Resolve requirements/ again from pyproject.toml: everything, and what each image holds
	$(LOCK) --all-extras -o requirements/all.txt
	$(LOCK) --extra operator --constraint requirements/all.txt -o requirements/operator.txt
	$(LOCK) --extra trainer --extra suites --constraint requirements/all.txt -o requirements/trainer.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-deps \
	  --group pyproject.toml:real -o requirements/real.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --group pyproject.toml:serve --override requirements/serve-overrides.txt -o requirements/serve.txt
	$(BIN)/uv pip compile --quiet --python-version 3.12 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	  --no-header --no-annotate --resolution lowest-direct --extra operator --extra trainer --extra dev \
	  --constraint tests/gpu/machine.txt pyproject.toml -o requirements/lowest.txt

gpu-kit: install ## Collect what a GPU machine lacks and prove it on the oldest versions we support: docs/development/gpu.md
	$(BIN)/python -m tests.gpu.kit

images: ## Build both container images with docker, podman or buildah (REGISTRY, TAG, BASE, WHEELS)
	@for target in operator trainer; do \
	  $(if $(BUILDER),$(BUILDER),$(error Install docker, podman or buildah, or set BUILDER)) build --target $$target \
	    $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(WHEELS),--build-arg WHEELS=$(WHEELS)) \
	    --tag $(if $(REGISTRY),$(REGISTRY)/)finetune-$$target:$(TAG) . || exit; \
	done

clean: ## Remove what was built, but not .venv and caches
	rm -rf build .finetune .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: help install quickstart cluster demo cluster-down test test-all test-fast test-unit test-real test-serve lint format generate lock gpu-kit images clean
