# Everything from a bare checkout: each target makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One numerical thread per process: the tests use both cores themselves, training sets its own.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test slowest lint clean

demo: $(VENV)/.installed
	$(BIN)/python -m agents.demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# In one process, so that no test is timed beside another.
slowest: $(VENV)/.installed
	$(BIN)/python -m pytest --durations=40

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
