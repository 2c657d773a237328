# Everything a developer runs. Each target does its own set-up in .venv; `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# A real SLURM, which the tests start, a C compiler, whose functions they test, programs that read files
# of results, and a browser, in which they open reports. mlpsubmit needs none of these.
DEBIAN := slurm-wlm slurmdbd munge mariadb-server gcc libc6-dev netcdf-bin r-cran-ncdf4 \
	chromium fonts-dejavu-core bindfs

# To rewrite the asserts of all tests takes seconds; their bytecode keeps that for the next time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-quick simulate crashes science bench bench-all check format debian clean

help:  ## List these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

quickstart: $(READY)  ## Train the quickstart example, collect it, print a table, draw a plot
	$(BIN)/mlpsubmit launch examples/quickstart.py
	$(BIN)/mlpsubmit collect quickstart --out results.nc --plot results.png --force

test: check debian  ## Everything that CI runs
	$(BIN)/pytest -n 2 --dist loadgroup

test-quick: $(READY)  ## The tests that start no worker processes and train for no more than seconds
	$(BIN)/pytest -n 2 -m "not slow"

N ?= 1000
SEED ?= 1000

simulate: $(READY)  ## Runs on a simulated cluster: N=100000 schedules from SEED on, about ten a second
	$(BIN)/python tests/simulation/simulate.py --first $(SEED) --count $(N)

crashes: $(READY)  ## Cut a small study at every operation on the disk; 200 random sequences; an hour
	$(BIN)/pytest -n 2 tests/crashes --hypothesis-profile night

science: $(READY)  ## Train and check the figures of examples/gallery; rewrite docs/gallery; 5 minutes
	$(BIN)/python examples/gallery/run.py --fresh

bench: .venv/.bench  ## Training against JAX and the machine's limit, six minutes; JSON in bench/results
	$(BIN)/python bench/trainloop.py --save
	$(BIN)/python bench/page.py

BENCHMARKS := overheads scale ntk estimates choices precision

bench-all: .venv/.bench  ## Everything that docs/performance.md says of CPUs; twenty minutes
	$(BIN)/python bench/trainloop.py --all --save
	for name in $(BENCHMARKS); do $(BIN)/python bench/$$name.py --save || exit 1; done
	$(BIN)/python bench/page.py

check: $(READY)  ## Formatter, linter, strict types, layers of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)  ## Reformat the code and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

debian:  ## Install SLURM, a C compiler, ncdump, R, Chromium and bindfs for the tests, as root on Debian
	@for name in slurmctld slurmdbd munged mariadbd cc ncdump Rscript chromium bindfs; do \
		command -v $$name >/dev/null || missing="$$missing $$name"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive \
			apt-get install --yes --no-install-recommends $(DEBIAN); \
	else echo "no$$missing here: tests that need them will be skipped ($(DEBIAN))"; fi

clean:  ## Remove the environment and build outputs
	rm -rf .venv build dist *.egg-info

# What the benchmarks need besides.
.venv/.bench: $(READY)
	$(BIN)/pip install --quiet -e '.[bench]' -c constraints.txt
	touch $@

# A virtual environment with everything pinned; rebuilt when the pins or the project change.
# On Debian, venv is in a separate package.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update && apt-get install --yes python3-venv; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --quiet -e '.[test]' -c constraints.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target .venv/submitit-oldest submitit==1.5.0
	$(BIN)/python tests/pythons/install.py .venv/pythons
	touch $@
