# featurestore_dagster. `make help` lists the targets.
# Everything is installed into .venv from requirements.lock; nothing else on the machine is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FEATURESTORE := $(BIN)/featurestore

.DEFAULT_GOAL := help
.PHONY: help install demo test up down status bench generate lint clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Make .venv from requirements.lock (hashed)

# uv is fetched into the venv for speed; what it installs is checked against the hashes of the lock, and compiled once instead of at each start.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed; found " + sys.version.split()[0] + ". Use: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV="$$PWD/$(VENV)" $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV="$$PWD/$(VENV)" $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(VENV)/installed

demo: install ## From nothing to a served vector, on real data (replay clock)
	@$(FEATURESTORE) demo

test: install ## The whole suite: lint, types, import contracts, generated files, tests
	@./tests/run

up: install ## Dagster UI, daemon, code server and stores in the foreground; Ctrl-C stops all
	@$(FEATURESTORE) up

down: install ## Stop what `make up` started
	@$(FEATURESTORE) down

status: install ## What runs, and the SLO state of each view
	@$(FEATURESTORE) status

bench: install ## Measure everything, side by side with Feast, and write docs/benchmarks.md
	@$(BIN)/python -m benchmarks

generate: install ## Write the files that are derived from the declarations
	@$(FEATURESTORE) generate

lint: install ## Lint and format what can be mended automatically
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## Remove .venv, data and caches
	rm -rf $(VENV) .featurestore .pytest_cache .mypy_cache .ruff_cache .hypothesis dbt_project/target build dist *.egg-info
