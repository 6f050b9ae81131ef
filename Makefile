# The words of this house. Everything runs from .venv, which `make` fills from uv.lock; nothing else is needed than Python 3.11+, git and make.
PYTHON ?=
UV_VERSION := 0.13.9
CONFIG ?= headrace.toml
STATE ?= .headrace
NAME ?= $(USER)
SCOPES ?= read
MINUTES ?= 30
SEED ?=
BIN := .venv/bin
READY := .venv/.filled
# Byte code is what makes a start of MLflow or scikit-learn three to five times as fast.
unexport PYTHONDONTWRITEBYTECODE
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

.PHONY: help
help:  ## what can be said here
	@awk -F':.*##' '/^[a-z-]+:.*##/ {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: bootstrap
bootstrap: $(READY)  ## fill .venv from uv.lock; says what this machine lacks

$(READY): uv.lock pyproject.toml clients/python/pyproject.toml
	@sh stack/bootstrap.sh $(UV_VERSION) $(PYTHON)
	@touch $@

.PHONY: demo
demo: $(READY)  ## the whole flow on real flights, in this terminal
	@exec $(BIN)/python -m stack demo

.PHONY: up
up: $(READY)  ## start the stack and stay: CONFIG=headrace.toml STATE=.headrace
	@exec $(BIN)/python -m stack up --config '$(CONFIG)' --state '$(STATE)'

.PHONY: apply
apply: $(READY)  ## check CONFIG and put it in force on STATE
	@exec $(BIN)/python -m stack apply --config '$(CONFIG)' --state '$(STATE)'

.PHONY: token
token: $(READY)  ## make a token for the REST interface: NAME=storefront SCOPES=submit,read
	@exec $(BIN)/python -m stack token create '$(NAME)' --scopes '$(SCOPES)' --state '$(STATE)'

.PHONY: tidy
tidy: $(READY)  ## take away now what `keep` no longer keeps; DRY=1 only says what would go
	@exec $(BIN)/python -m stack tidy --state '$(STATE)' $(if $(DRY),--dry-run)

.PHONY: envs prune
envs: $(READY)  ## the model environments on STATE: size, last use, and who uses them
	@exec $(BIN)/python -m stack envs --state '$(STATE)'

prune: $(READY)  ## take away environments, checkouts and caches that nobody uses now; DRY=1 only says what would go
	@exec $(BIN)/python -m stack envs --prune --state '$(STATE)' $(if $(DRY),--dry-run)

.PHONY: audit
audit: $(READY)  ## is everything as promised on STATE? reads only, at any time; DEEP=1 reads every stored file
	@exec $(BIN)/python -m stack audit --state '$(STATE)' $(if $(DEEP),--deep)

.PHONY: env
env:  ## write .env with random passwords, for `docker compose up`
	@sh deploy/env.sh

.PHONY: check
check: $(READY)  ## format, lint, types, imports, unit tests: in seconds
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/mypy -p stack
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m pytest tests/unit -q -n 2

.PHONY: test
test: $(READY)  ## every test; the tests bring the servers that they need
	@exec $(BIN)/python -m pytest -n 4

.PHONY: fuzz
fuzz: $(READY)  ## 20,000 generated requests to the API: none a defect, each answer documented
	@FUZZ_REQUESTS=$${FUZZ_REQUESTS:-24000} exec $(BIN)/python -m pytest tests/contract/test_fuzz.py -q -x

.PHONY: crash
crash: $(READY)  ## kill each kind of process at each side of every point that it comes to: some ten minutes
	@EVERYWHERE=1 exec $(BIN)/python -m pytest tests/chaos/test_crash_points.py -q -s --timeout=3600

.PHONY: chaos
chaos: $(READY)  ## faults of every kind over a running house: MINUTES=30 SEED=7
	@MINUTES='$(MINUTES)' SEED='$(SEED)' exec $(BIN)/python -m pytest tests/chaos/test_chaos.py -q -s

.PHONY: test-torch
test-torch: $(READY)  ## how models of PyTorch, Keras, XGBoost, ONNX are kept; large downloads (TORCH_FIND_LINKS: smaller wheels)
	@exec $(BIN)/python -m pytest tests/torch/kinds.py -q --timeout=1800

.PHONY: compose-test
compose-test: $(READY)  ## the stack in containers, from start to end; needs docker compose, or podman-compose
	@exec $(BIN)/python -m pytest tests/compose/flow.py -q -x --timeout=1800

.PHONY: bench
bench: $(READY)  ## from a commit of 1,000 rows to the consumer's webhook, beside a bare script
	@exec $(BIN)/python -m bench

.PHONY: soak
soak: $(READY)  ## the stack at work for MINUTES=30, and whether memory, descriptors, Redis or the WAL grow
	@exec $(BIN)/python -m bench.soak --minutes $(MINUTES)

.PHONY: clean
clean:  ## remove .venv and what was built; never the state of a stack
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
