# The project's commands. `make` alone prints them; .ci/run calls `make check test` and nothing else.
PYTHON ?= python3
BIN := .venv/bin
SEEDS ?= 0 1 2

.DEFAULT_GOAL := help
.PHONY: setup demo test check fix bench evidence docs help

setup: .venv/.made ## make .venv with pinned versions (pip's own settings are honoured)

.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip # --group needs pip 25.1
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[rules,environments,feedback]" --group dev
	@$(BIN)/python -c 'import torch as t; print("torch", t.__version__, "for", f"CUDA {t.version.cuda}" if t.version.cuda else "the CPU")'
	@touch $@

demo: setup ## the whole way on a laptop: SFT, reward model, PPO, report
	$(BIN)/trimtab run recipes/quickstart.yaml

test: setup ## run the tests
	$(BIN)/python -m pytest tests --numprocesses logical --maxprocesses 8 --dist worksteal

check: setup ## formatting, lint, types (the import layers are a test)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: setup ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## time and memory of a step against plain transformers
	$(BIN)/python benchmarks/engine.py

evidence: setup ## PPO and GRPO against SFT with three seeds on 300 test prompts; what is done is skipped
	$(BIN)/python benchmarks/evidence.py --seeds $(SEEDS)

docs: setup ## check links, commands and recipes in the documentation
	$(BIN)/python -m pytest tests/test_docs.py tests/test_recipes.py

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
