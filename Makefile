PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# Of the whole test suite, one per core of the smallest machine it runs on.
WORKERS ?= 2

.PHONY: help install demo up lint check test test-programs supported-python \
	bench bench-collect bench-dumps bench-ship bench-runs bench-storage bench-publish bench-telemetry bench-scaling \
	bench-demo bench-friction bench-load bench-saturation bench-workers lock clean
# `make -j` must not start slow prerequisites beside those that refuse at once.
.NOTPARALLEL:

help:  ## List the targets.
	@awk -F ':.*## *' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' Makefile

install: .venv/installed  ## Install into .venv, from locked versions, all that the demonstration needs.

demo: install  ## Everything, on a made-up application; ONCE=1 exits after the summary.
	$(BIN)/analytics-assets demo $(if $(ONCE),--once) $(if $(PORT),--port $(PORT)) $(if $(APP_PORT),--app-port $(APP_PORT))

up: install  ## The Dagster UI on 127.0.0.1:3000, for a real application.
	$(BIN)/analytics-assets up $(if $(PORT),--port $(PORT))

lint: .venv/test-installed  ## ruff and mypy --strict.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint  ## In less than two minutes: lint, and the tests that need no server and no browser.
	$(BIN)/pytest -m "not server" --numprocesses 2 --dist loadfile

test: test-programs lint  ## Everything: lint, the definitions, all tests with their coverage.
	$(VALIDATE)
	@# The tests start hundreds of processes. Each would compile the package where PYTHONDONTWRITEBYTECODE is set.
	$(BIN)/python -m compileall -q analytics_assets
	$(BIN)/pytest --numprocesses $(WORKERS) --cov --durations 25

# From another folder: beside dagster.yaml, it asks for the database of Dagster's records. Its advice to use the command
# `dg` is for projects of another layout.
VALIDATE := cd .venv && PYTHONWARNINGS=ignore:Function bin/dagster definitions validate --workspace ../workspace.yaml

test-programs:  ## Bring the programs that the tests run (Chromium, iproute2, MariaDB, nginx, openssl, PgBouncer, Redis, sshd), or say what brings them.
	@.ci/test-programs

bench: .venv/test-installed  ## Every benchmark, about half an hour; writes docs/benchmarks.md. QUICK=1 tries small sizes.
	$(BIN)/python benchmarks/report.py $(if $(QUICK),--quick,--write docs/benchmarks.md)

bench-collect: .venv/test-installed  ## What collecting from a source view costs, beside the plain SQL that does the same.
	$(BIN)/python benchmarks/collect.py

bench-telemetry: .venv/test-installed  ## What counting costs, beside prometheus_client and its middlewares.
	$(BIN)/python benchmarks/telemetry.py

bench-dumps: .venv/test-installed  ## What reading a day of counter dumps costs, beside DuckDB without a check.
	$(BIN)/python benchmarks/dumps.py

bench-ship: .venv/test-installed  ## What reading a day of counter dumps behind a URL costs, beside the local folder.
	$(BIN)/python benchmarks/ship.py

bench-runs: .venv/test-installed  ## What whole runs cost, beside runs of six empty assets on stock Dagster.
	$(BIN)/python benchmarks/runs.py

bench-demo: .venv/test-installed  ## How long the first demonstration takes, without installing.
	$(BIN)/python benchmarks/demo.py

bench-storage: .venv/test-installed  ## What the event log and removing a day cost, beside stock storage and deleting.
	$(BIN)/python benchmarks/storage.py

bench-publish: .venv/test-installed  ## What publishing costs, beside one CREATE TABLE AS of the daily aggregate.
	$(BIN)/python benchmarks/publish.py

bench-scaling: .venv/test-installed  ## How the cost of collecting grows with rows, events, days, files and keys.
	$(BIN)/python benchmarks/scaling.py

bench-load: .venv/test-installed test-programs  ## Fifty backfills at once behind PgBouncer, while twenty clients read.
	$(BIN)/python benchmarks/load.py

# It starts the workers as the tests do.
bench-workers: .venv/test-installed test-programs  ## A backfill by one process, by one Celery worker, and by two.
	PYTHONPATH=. $(BIN)/python benchmarks/workers.py

bench-saturation: .venv/test-installed test-programs  ## The load at which each part brings no more, and what is exhausted then.
	$(BIN)/python benchmarks/saturation.py

bench-friction: .venv/test-installed  ## False alarms and finds of the friction statistic, by simulation; writes docs/friction.md.
	$(BIN)/python benchmarks/friction.py --write docs/friction.md

# The range of `requires-python` in pyproject.toml; pip would name it only after minutes, and not in a sentence.
supported-python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "Python 3.11 to 3.14 is needed, this is %d.%d: make PYTHON=..." % sys.version_info[:2])'

.venv/installed: requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory supported-python
	@echo "Installing into .venv: about 1 GB, some minutes."
	$(PYTHON) -m venv .venv
	$(PIP) install -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

.venv/test-installed: .venv/installed requirements-test.lock
	$(PIP) install -r requirements-test.lock
	touch $@

# pip-tools calls "unsafe" what it leaves out of a lock file: here this package, which its own extras name.
COMPILE := $(BIN)/pip-compile --quiet --strip-extras --unsafe-package analytics-assets --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --all-build-deps

lock: .venv/test-installed  ## Write both lock files anew from pyproject.toml; UPGRADE=--upgrade takes newer versions.
	$(COMPILE) $(UPGRADE) --extra alerts --extra demo --extra pages --output-file requirements.lock pyproject.toml
	$(COMPILE) $(UPGRADE) --extra test --constraint requirements.lock --output-file requirements-test.lock pyproject.toml

clean:  ## Remove what was installed and what the demonstration stored.
	rm -rf .venv .analytics/demo
