# `make demo` and `make test` set up everything they need in .venv and run.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
# For another build of torch: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo test test-slow lint bench docs clean

$(STAMP): pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14)) or print("python", sys.version.split()[0])' \
		|| (echo "patchdrive needs Python 3.11 to 3.13; set PYTHON=python3.11" >&2; exit 1)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[test,docs]"
	touch $@

demo: $(STAMP)
	$(BIN)/patchdrive demo --out demo-out

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not slow"

test-slow: lint
	$(BIN)/pytest

# make bench NAME=reading
bench: $(STAMP)
	$(BIN)/python benchmarks/$(NAME).py

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) demo-out docs/_build
