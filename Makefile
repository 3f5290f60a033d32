# `make demo`, `make demo-train`, `make train-demo-gpu`, `make test` and others. Each creates .venv and installs the
# package on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Huge pages for XLA's temporary buffers (benchmarks/README.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# Tests mostly compile, which uses one core each.
TEST_PROCESSES ?= -n auto --maxprocesses=4 --dist=loadfile

.PHONY: demo demo-train train-demo-gpu test test-slow test-gpu-compiler clean

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "threedim needs Python 3.11 or newer; for example make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(1)
	touch $@
endef

# Python compiles what it imports; all of 1.1 GB would take longer than the demo's sampling.
$(VENV)/installed: setup.py
	$(call install,--no-compile --editable .)

$(VENV)/installed-for-tests: setup.py
	$(call install,--editable '.[test]')

# Samples views of two held-out objects with the packaged weights.
demo: $(VENV)/installed
	$(BIN)/python -m threedim.main --config=configs/shapes64.py --mode=sample --workdir=runs/pretrained --open \
		--config.sample.weights=shapes64 --config.data.dir=data/held_out \
		--config.data.procedural.num_train_objects=0 --config.data.procedural.num_test_objects=2 --config.sample.preset=draft

# Trains a small network on four objects in minutes, then samples views of them.
demo-train: $(VENV)/installed
	$(BIN)/python -m threedim.main --config=configs/demo.py --mode=train --workdir=runs/demo
	$(BIN)/python -m threedim.main --config=configs/demo.py --mode=sample --workdir=runs/demo --open

# Trains, exports and evaluates the network of configs/CONFIG.py on one NVIDIA GPU within MINUTES; FLAGS change fields.
MINUTES ?= 10
CONFIG ?= gpu64
FLAGS ?=
train-demo-gpu: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[gpu]'
	$(BIN)/python -m scripts.train_demo --minutes=$(MINUTES) --config=configs/$(CONFIG).py --out=runs/$(CONFIG) -- $(FLAGS)

test: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(TEST_PROCESSES)

test-slow: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest -m slow $(TEST_PROCESSES)

# Compiles the training step for an H200. Installs JAX's CUDA plugin, several GB; needs no GPU.
test-gpu-compiler: $(VENV)/installed-for-tests
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[gpu]'
	$(BIN)/python -m pytest -m gpu_compiler -v tests/test_gpu_compiler.py

clean:
	rm -rf $(VENV) build *.egg-info
