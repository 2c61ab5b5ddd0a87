# Everything that a checkout can do. `make` alone lists it.
#
# What is installed goes to .venv and, as root, into the system by packaging/install-deps.sh, which
# says what and why. A containerd that runs on this host is never touched: demo, tests and
# benchmarks start private ones, with their own root, state and socket.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(CURDIR)/$(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml setup.py $(wildcard packaging/bin/*)
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench guest clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  ARGS=… is handed on: make test ARGS='-k ttrpc'"

demo: $(VENV)/.runtime ## Start containers in microVMs with a private containerd, and show it
	@PYTHON=$(RUN) packaging/demo.sh $(ARGS)

test: $(VENV)/.dev ## Run every test and say what was skipped, and why
	@$(RUN) -m pytest -rs $(ARGS)

lint: $(VENV)/.dev ## Run only the tests of style: linters, types, layers, ceilings
	@$(RUN) -m pytest -rs -q tests/test_style.py tests/test_project.py $(ARGS)

bench: $(VENV)/.dev ## Measure against runc and raw QEMU, and print one table
	@$(RUN) -m tests.bench $(ARGS)

guest: $(VENV)/.runtime ## Compile void-init and build the guest image of this host's kernel
	@$(VENV)/bin/void-guest build $(ARGS)

clean: ## Remove what was built here, the virtual environment included
	rm -rf build dist *.egg-info $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	@if [ -f shims/guest/init/Makefile ]; then $(MAKE) -C shims/guest/init clean; fi

# pip comes last, so a venv without it was interrupted; the same command completes it.
$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

# Debian's packages are looked at every time: that takes milliseconds, and a host changes.
.PHONY: debian-runtime debian-test
debian-runtime:
	@packaging/install-deps.sh runtime
debian-test:
	@packaging/install-deps.sh test

$(VENV)/.runtime: $(SOURCES) | debian-runtime
	@[ -x $(VENV)/bin/pip ] || $(MAKE) --no-print-directory $(VENV)/bin/pip
	@echo "Python packages: void-shims with its dependencies into $(VENV)"
	$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: $(SOURCES) | debian-test
	@[ -x $(VENV)/bin/pip ] || $(MAKE) --no-print-directory $(VENV)/bin/pip
	@echo "Python packages: void-shims with its dependencies and the tests' tools into $(VENV)"
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.runtime
