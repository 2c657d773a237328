# Everything a developer runs. Each target does its own set-up in .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test test-quick check format clean

quickstart: $(READY)  ## Train the quickstart example, collect it, print a table, draw a plot
	$(BIN)/mlpsubmit launch examples/quickstart.py
	$(BIN)/mlpsubmit collect quickstart --out results.nc --plot results.png

test: check  ## Everything that CI runs
	$(BIN)/pytest -n 2 --dist loadgroup

test-quick: $(READY)  ## The tests that launch no worker processes
	$(BIN)/pytest -n 2 -m "not slow"

check: $(READY)  ## Formatter, linter, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info

# A virtual environment with everything pinned; made anew when the pins or the project change.
# Debian keeps venv in a package of its own.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update && apt-get install --yes python3-venv; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --quiet -e '.[test]' -c constraints.txt
	touch $@
