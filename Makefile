# `make` lists the targets. There is one environment, .venv, and what lies in it stays: to use another build of PyTorch
# (CPU only, say), put torch and torchvision there first. Both: torch alone is replaced to suit the newest torchvision.

VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONFIG ?= configs/quickstart.yaml
# The first interpreter that is new enough; looked up only when .venv has to be made.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && echo "$$p"; done))
NOT_FAST := slow or chaos or browser or service or gpu

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help study test test-all golden recorded-runs reference screenshots bench tables bench-check check format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

study: $(VENV)/.run ## Run the quickstart study (or CONFIG=path/to/study.yaml)
	$(BIN)/kd-study run $(CONFIG)

test: check ## Check, then run the fast tests, and see that a step is no slower
	$(BIN)/pytest -m 'not ($(NOT_FAST))' --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python benchmarks/check.py

test-all: test ## The same, then all other tests (those for a GPU skip without one)
	$(BIN)/pytest -m '$(NOT_FAST)'

golden: $(VENV)/.dev ## Write the numbers of the golden runs anew (after a change that is meant to change them)
	$(BIN)/python tests/trainable/test_golden.py

recorded-runs: $(VENV)/.dev ## Train the runs anew that the diagnosis is tested on (after a change of the metrics)
	$(BIN)/python -m tests.trainable.recorded_runs

reference: $(VENV)/.dev ## Write docs/config.md anew (after a change of the config's classes)
	$(BIN)/python -m tests.config_reference

screenshots: $(VENV)/.dev ## Take the pictures of docs/reading_a_study.md anew (needs Chromium)
	$(BIN)/kd-study run configs/quickstart.yaml --set study.name=quickstart-30 --set study.trials=30
	$(BIN)/python -m tests.browser.screenshots runs/quickstart-30

bench: $(VENV)/.dev ## Run the benchmarks of speed in a few minutes and print one table
	$(BIN)/python benchmarks/bench.py

tables: $(VENV)/.dev ## List the StableKD paper's tables: each cell's figure there and here, or that it was not run
	$(BIN)/python benchmarks/stablekd_tables.py --list

bench-check: $(VENV)/.dev ## See in a quarter of a minute, on a CPU, that a step is no slower
	$(BIN)/python benchmarks/check.py

check: $(VENV)/.dev ## Check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## Format the code and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove caches and build output (keeps .venv and runs/)
	rm -rf build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find study trainable tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "kd-study needs Python 3.11 or newer, but found '$(PYTHON)'; give one with PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)

# What a study needs. On Linux a first install fetches several GB, because PyTorch's default build brings CUDA.
$(VENV)/.run: pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing kd-study into $(VENV) …"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing kd-study and its development tools into $(VENV) …"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.run $@
