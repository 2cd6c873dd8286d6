# make environment  .venv alone, from the lock (the others make it, too)
# make demo       the whole comparison on a small real model, CPU only
# make study      config/campaigns/study.yaml: the demo's five methods with three seeds each, hours on two cores; leave the machine to it
# make test       the fast tests: units and plans, in two processes
# make test-all   every test, the tiny experiment end to end among them; ARGS='tests/workflow -k stale'
# make plan       the stale jobs, one line each: why, and what they will cost; ARGS='demo_kd --configfile my.yaml'
# make forecast   what the stale jobs will cost, before anything runs; ARGS='demo_kd --configfile my.yaml' goes to snakemake -n
# make bill       what all the work in results/ has cost to date: useful, wasted, superseded; ARGS='otherfolder --json'
# make faults     the fault campaign: about a hundred kills, full disks and damaged files, each survived or reported
# make docs       the pages of docs/ as a site in site/, in an environment of its own
# make checks     what CI runs before the tests: format, lint, types
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.made-from-lock
SNAKEMAKE := $(BIN)/snakemake
REPORT := results/report.html
COMPARISON := results/comparison/comparison.json

.DEFAULT_GOAL := help

.PHONY: help environment demo study plan forecast bill test test-all faults docs checks format lock reference

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(MAKEFILE_LIST)

environment: $(READY)

# Snakemake warns of coroutines of its own.
demo study: export PYTHONWARNINGS = ignore::RuntimeWarning
demo study: export PYTHONPATH := .:workflow_scripts/logger:$(PYTHONPATH)
study: CAMPAIGN := --configfile config/campaigns/study.yaml
demo study: $(READY)
	@$(SNAKEMAKE) --logger progress $(CAMPAIGN)
	@$(SNAKEMAKE) --quiet all --report $(REPORT) $(CAMPAIGN)
	@$(BIN)/python -m workflow_scripts.report.table $(COMPARISON) $(REPORT)

plan: $(READY)
	@$(BIN)/python -m workflow_scripts plan $(ARGS)

forecast: $(READY)
	@$(BIN)/python -m workflow_scripts forecast $(ARGS)

bill: $(READY)
	@$(BIN)/python -m workflow_scripts bill $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(READY)
	$(BIN)/python -m pytest -m '' $(ARGS)

faults: $(READY)
	$(BIN)/python -m benchmarks.faults.campaign

docs: .venv.docs/.made-from-lock
	NO_MKDOCS_2_WARNING=1 .venv.docs/bin/mkdocs build --quiet --strict

.venv.docs/.made-from-lock: envs/requirements-docs.txt
	$(PYTHON) -m venv .venv.docs
	.venv.docs/bin/python -m pip install -qq --disable-pip-version-check -r envs/requirements-docs.txt
	@touch $@

checks: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile rules
	$(SNAKEMAKE) --lint
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/snakefmt Snakefile rules

reference: $(READY)
	$(BIN)/python -m workflow_scripts.reference --write

# The virtual environment is made from the lock when it is missing or older than the lock.
$(READY): envs/requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r envs/requirements.txt
	@touch $(READY)

# The lock as conda's environment. Snakemake copies that file alone, so it cannot point to requirements.txt.
envs/conda.yaml: envs/requirements.txt
	(echo "# The lock for conda, made by 'make lock'."; echo "name: distillation-energy-benchmark"; \
	  printf '%s\n' "channels:" "  - conda-forge" "dependencies:" "  - python=3.11" "  - pip" "  - pip:"; \
	  sed -n 's/^[A-Za-z].*==.*/      - &/p' envs/requirements.txt) > $@

# A new lock from the direct dependencies, in a fresh environment.
lock:
	rm -rf .venv.lock && $(PYTHON) -m venv .venv.lock
	.venv.lock/bin/python -m pip install --quiet -r envs/requirements.in
	(echo "# Lock for Python 3.11 and 3.12, made by 'make lock' from requirements.in."; \
	  .venv.lock/bin/python -m pip freeze | sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/') > envs/requirements.txt
	rm -rf .venv.lock
	@$(MAKE) --no-print-directory envs/conda.yaml
