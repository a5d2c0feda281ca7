# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: install test test-package test-vllm demo demo-short gpu-report-short reproduce-short lint docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade pip
	$(BIN)/pip install -e '.[dev]'
	touch $@

test: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --cov --cov-report= $(ARGS)
	@echo "coverage: $$($(BIN)/coverage report --format=total)% of the lines in open_clip_triplet/"

# sdist and wheel, built, installed and used; FULL=1 installs all dependencies from PyPI
test-package: install
	PYTHON=$(BIN)/python FULL=$(FULL) bash tests/package/run.sh

test-vllm:
	PYTHON=$(PYTHON) bash tests/vllm/run.sh

demo: install
	$(BIN)/python tools/demo.py --output demo

demo-short: install
	$(BIN)/python tools/demo.py --output demo --short

# every part of tools/gpu_report.sh in its small form; needs no GPU
gpu-report-short: install
	PYTHON=$(BIN)/python TINY=1 bash tools/gpu_report.sh gpu-report-short

reproduce-short: install
	PYTHON=$(BIN)/python SHORT=1 bash examples/reproduce.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/update_docs.py --check

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf demo gpu-report-short site build dist .pytest_cache .ruff_cache *.egg-info
