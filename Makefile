PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo up test bench-telemetry bench-storage bench-publish lock clean

install: .venv/installed  ## Install into .venv, from locked versions.

demo: install  ## Everything, on a made-up application; ONCE=1 exits after the summary.
	$(BIN)/analytics-assets demo $(if $(ONCE),--once) $(if $(PORT),--port $(PORT))

up: install  ## The Dagster UI on 127.0.0.1:3000, for a real application.
	$(BIN)/analytics-assets up $(if $(PORT),--port $(PORT))

test: .venv/test-installed  ## ruff, mypy --strict and the whole pytest suite.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

bench-telemetry: .venv/test-installed  ## What counting costs, beside prometheus_client and its middlewares.
	$(BIN)/python benchmarks/telemetry.py

bench-storage: .venv/test-installed  ## What the event log and removing a day cost, beside stock storage and deleting.
	$(BIN)/python benchmarks/storage.py

bench-publish: .venv/test-installed  ## What publishing costs, beside one CREATE TABLE AS of the daily aggregate.
	$(BIN)/python benchmarks/publish.py

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/test-installed: .venv/installed requirements-test.lock
	$(BIN)/pip install --disable-pip-version-check --quiet -r requirements-test.lock
	touch $@

COMPILE := $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --all-build-deps

lock: .venv/test-installed  ## Write both lock files anew from pyproject.toml; UPGRADE=--upgrade takes newer versions.
	$(COMPILE) $(UPGRADE) --extra pages --output-file requirements.lock pyproject.toml
	$(COMPILE) $(UPGRADE) --extra pages --extra test --constraint requirements.lock --output-file requirements-test.lock pyproject.toml

clean:  ## Remove what was installed and what the demonstration stored.
	rm -rf .venv .analytics/demo
