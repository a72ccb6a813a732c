# Everything from a bare checkout: each target makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One numerical thread per process: the tests use both cores themselves, training sets its own.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-oldest test-newest slow slowest soak long-run fuzz lint docs clean

demo: $(VENV)/.installed
	$(BIN)/python -m agents.demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The same tests with the lower bounds of pyproject.toml, and with the newest versions there are. Each keeps machine code apart:
# of one source there is one version in a folder.
test-oldest: $(VENV)-oldest/.installed
	NUMBA_CACHE_DIR=$(abspath $(VENV)-oldest)/numba $(VENV)-oldest/bin/python -m pytest -n 2 --dist worksteal

test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --upgrade --upgrade-strategy eager --editable '.[dev]'
	NUMBA_CACHE_DIR=$(abspath $(VENV)-newest)/numba $(VENV)-newest/bin/python -m pytest -n 2 --dist worksteal

# What an ordinary run leaves out: other people's learners, minutes each, in an environment of their own.
slow: $(VENV)-examples/.installed
	RAY_worker_niceness=0 $(VENV)-examples/bin/python -m pytest -m slow --durations=0

# In one process, so that no test is timed beside another.
slowest: $(VENV)/.installed
	$(BIN)/python -m pytest --durations=40

# Random layers, machines and programs, every property on each; under an hour on two cores.
soak: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python -m tests.soak --count 10000 --workers 2 --json build/soak.json

# A million tiny episodes in one process, whose memory and speed must stay; under an hour.
long-run: $(VENV)/.installed
	$(BIN)/python -m tests.long_run

# Changed files for every parser, ten minutes each, half a day in all.
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz --minutes 10

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The user guide as a site; nothing of it is fetched from elsewhere.
docs: $(VENV)/.installed
	$(BIN)/zensical build --clean --strict --config-file .zensical.toml
	@echo "Look at build/docs/index.html; with search: $(BIN)/python -m http.server --directory build/docs"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)-examples/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-examples
	$(VENV)-examples/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[dev,examples]'
	touch $@

$(VENV)-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
	  --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-examples $(VENV)-oldest $(VENV)-newest .cache build *.egg-info
