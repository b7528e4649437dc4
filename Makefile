# `make demo` and `make test` set up everything they need in .venv and run.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
# For another build of torch: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PEERS  := $(VENV)/peers
FIELD  := $(VENV)/peers-engine
OTHERS := $(VENV)/interop
# rasterio 1.5 brings GDAL 3.12 and asks for Python 3.12: make interop PYTHON312=/path/to/python3.12
PYTHON312 ?= python3.12

.PHONY: demo test test-slow lint interop bench chaos docs clean

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

# cucim asks for 1.4 GB of CUDA and reads on the CPU without them: it lies apart, where `pip check` does not miss them.
# Where it has no wheel the benchmark says so and goes on.
$(VENV)/.bench: $(STAMP)
	$(BIN)/pip install --quiet --editable ".[bench]"
	-$(BIN)/pip install --quiet --upgrade --no-deps --target $(PEERS) cucim-cu13
	touch $@

# The other engines, in an environment of their own, by the same torch. TIAToolbox asks for an older one, and for servers that its engine
# never starts: it is installed without its dependencies. The benchmark names an engine that is missing, and goes on.
$(FIELD)/.ready: benchmarks/engine-peers.txt | $(STAMP)
	$(PYTHON) -m venv $(FIELD)
	$(FIELD)/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	-$(FIELD)/bin/pip install --quiet --requirement benchmarks/engine-peers.txt
	-$(FIELD)/bin/pip install --quiet --no-deps tiatoolbox==2.1.3
	touch $@

# make bench NAME=read, or NAME=read ARGS=--quick
bench: $(VENV)/.bench $(if $(filter engine,$(NAME)),$(FIELD)/.ready)
	PYTHONPATH=$(PEERS) $(BIN)/python benchmarks/$(subst -,_,$(NAME)).py $(ARGS)

$(OTHERS)/.ready: tests/interop/peers.txt | $(STAMP)
	$(PYTHON) -m venv $(OTHERS)
	$(OTHERS)/bin/pip install --quiet --requirement $<
	touch $@

# A shim of pyenv is found and does not start: so it is started, once, to see.
$(OTHERS)-312/.ready: tests/interop/peers-312.txt
	$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 12))' \
		|| (echo "GDAL 3.12 needs Python 3.12 or later; set PYTHON312=/path/to/python3.12" >&2; exit 1)
	$(PYTHON312) -m venv $(OTHERS)-312
	$(OTHERS)-312/bin/pip install --quiet --requirement $<
	touch $@

# wsidata asks for a torch: the one that is here already.
$(OTHERS)-spatialdata/.ready: tests/interop/peers-spatialdata.txt | $(STAMP)
	$(PYTHON) -m venv $(OTHERS)-spatialdata
	$(OTHERS)-spatialdata/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(OTHERS)-spatialdata/bin/pip install --quiet --requirement $<
	touch $@

# Who opens what a run leaves. An environment that cannot be made is named in the table, and its consumers count as failed.
interop: $(STAMP)
	-$(MAKE) --no-print-directory --keep-going $(OTHERS)/.ready $(OTHERS)-312/.ready $(OTHERS)-spatialdata/.ready
	rm -rf interop-out
	$(BIN)/python tests/interop/run.py interop-out

# SIGKILL at N random instants, and the same bytes each time
N ?= 200
chaos: $(STAMP)
	$(BIN)/python benchmarks/chaos.py $(N)

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) demo-out interop-out docs/_build
