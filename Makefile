# `make help` lists the targets. Everything runs in a virtual environment of its own, .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKED := raygf jobs tests benchmarks tune_spaces
TEST_PROCESSES ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test lint format bench docs clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing raygf and what it needs into $(VENV) (a few GB, some minutes the first time)"
	PYTHONWARNINGS=ignore:Editable $(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	@touch $@

setup: $(READY)  ## Make the virtual environment and install everything into it

demo: $(READY)  ## Train 3 exits on handwritten digits on Ray, and let them stop early: under 2 minutes
	$(BIN)/python jobs/demo.py

ui: $(READY)  ## Open the MLflow UI on what has been trained here
	@echo "The runs are at http://127.0.0.1:$(or $(PORT),5000)/#/experiments/1/runs?workflowType=machine_learning"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --port $(or $(PORT),5000)

test: $(READY)  ## Run the tests, in TEST_PROCESSES=3 processes
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## Check style, formatting and types
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

bench: $(READY)  ## Run the benchmarks
	$(BIN)/python benchmarks/round_overhead.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/fusion_step.py
	$(BIN)/python benchmarks/early_exit.py
	$(BIN)/python benchmarks/images.py

docs: $(READY)  ## Build the pages as a site, in build/site
	PYTHONWARNINGS=ignore:Editable $(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server -d build/site"

clean:  ## Remove the virtual environment and caches; runs and the tracking database stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
