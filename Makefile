# Two commands: `make report` and `make test`. Each sets up what it needs, once.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
PROFILE ?= standard
OPTIONS ?=

.PHONY: report test test-unit test-all bench lab lint lock clean
.DEFAULT_GOAL := report

report: $(STAMP)
	@$(BIN)/perfkit report --profile $(PROFILE) $(OPTIONS)

# A process for each processor, up to four; a file's tests stay together and share their servers.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

# Many tests start commands and kernels: without compiled modules each would compile perfkit anew.
test test-unit test-all: export PYTHONDONTWRITEBYTECODE =

test: $(STAMP)
	@$(PYTEST) -m "not slow and not alone"
	@$(BIN)/pytest -m "not slow and alone"

test-unit: $(STAMP)
	@$(PYTEST) -m "not slow and not alone and not server and not process"

test-all: $(STAMP)
	@$(PYTEST) -m "not alone"
	@$(BIN)/pytest -m alone

bench: $(STAMP) .venv-bench/.installed
	@$(BIN)/python -m benchmarks $(NAME)

.venv-bench/.installed: benchmarks/requirements.lock
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.lock
	@touch $@

lab: $(STAMP)
	@$(BIN)/jupyter lab --notebook-dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock:
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --upgrade \
		--extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# uv is used where it is there: the same packages in a tenth of the time.
$(STAMP): requirements.lock requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "perfkit needs Python 3.11 or later; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) (once)"
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		VIRTUAL_ENV=$(VENV) uv pip install --quiet --compile-bytecode -r requirements.lock && \
		VIRTUAL_ENV=$(VENV) uv pip install --quiet --no-deps -e . ; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e . ; \
	fi
	@touch $(STAMP)
