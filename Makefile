# Everything a fresh machine needs: `make train` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
CONFIG ?= configs/reach.toml
CHECKPOINT := checkpoints/tiny
BIN := .venv/bin
export PYTHONUNBUFFERED := 1

.PHONY: help setup train test lint protos docs bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## Set up .venv and .venv-sim from the lock files
	@scripts/setup.sh

$(CHECKPOINT)/config.json: | setup
	$(BIN)/vlarl checkpoint tiny $(CHECKPOINT)

train: setup $(if $(findstring embedded,$(CONFIG)),$(CHECKPOINT)/config.json) ## Train on this machine: four services, LIBERO's simulator; CONFIG=... for another run
	$(BIN)/vlarl up $(CONFIG)

test: setup ## Run all tests that need no GPU, in both environments
	@scripts/test.sh

lint: setup ## Formatting, lint, strict types, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against tests/golden/contract-0.1.0.binpb
	@if git rev-parse -q --verify main >/dev/null; then \
	    $(BIN)/buf breaking --against '.git#branch=main'; fi

protos: setup ## Regenerate the stubs from protos/
	$(BIN)/buf format --write
	PATH=$(BIN):$$PATH python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. \
	    --mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/vlarl/*/v1/*.proto
	rm -f vlarl/rollout/v1/*_grpc.py*  # rollout has messages only

docs: setup ## Regenerate docs/configuration.md, docs/prometheus.md and docs/api.md
	$(BIN)/vlarl config reference > docs/configuration.md
	PYTHONPATH=. $(BIN)/python scripts/prometheus_reference.py > docs/prometheus.md
	PYTHONPATH=. $(BIN)/python scripts/api_reference.py > docs/api.md

bench: setup $(CHECKPOINT)/config.json ## Run the benchmarks and print their tables
	@scripts/bench.sh

clean: ## Remove runs and build products (not the environments)
	rm -rf runs build .pytest_cache .mypy_cache .ruff_cache
