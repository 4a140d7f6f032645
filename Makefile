# make demo | test | lint | bench: each makes the virtual environment .venv first if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.nnunet_ext_installed
CODE := $(wildcard nnunet_ext tests benchmarks docs)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lint bench
help:
	@echo "make demo   install, then convert, plan, train, predict, evaluate, submit on bundled MRI data (minutes on two CPU cores)"
	@echo "make test   install, then everything that CI checks"
	@echo "make lint   install, then ruff and mypy"
	@echo "make bench  install, then the side-by-side measurements of SSH-UNet, UNETR++, KD, OSS-Net and pre-training"

install: $(STAMP)

$(STAMP): pyproject.toml nnunet_ext.pth nnunet_ext.start
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "nnunet_ext needs Python >= 3.10, but $(PYTHON) is " \
	    + sys.version.split()[0] + ": name another one, for example make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing nnunet_ext, nnU-Net and torch into $(VENV); the first time takes some minutes."
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/nnunet-ext demo

lint: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

bench: $(STAMP)
	$(BIN)/python benchmarks/sshunet.py
	$(BIN)/python benchmarks/unetrpp.py
	$(BIN)/python benchmarks/kd.py
	$(BIN)/python benchmarks/ossnet.py
	$(BIN)/python benchmarks/pretraining.py
