# For a fresh machine with python3 and make:
#   make demo       trains a small model on videos of motion and lets it name unseen ones (VIDEO=your.mp4: yours as well)
#   make test       lint, format check and all tests
#   make faults     broken videos, broken checkpoints, kills and full disks, thousands of them (a quarter of an hour)
#   make evidence   trains every family with and without time on these videos: within the hour on 2 cores
#   make ablations  the TPS ablations in small, within another
#   make benchmark  latency and memory beside the models of Transformers (ARGUMENTS passes options on)
# TORCH picks the torch build, TRANSFORMERS the Transformers one:
#   make test TORCH="torch==2.13.0" TRANSFORMERS="transformers==5.20.0"
PYTHON ?= python3
TORCH ?= torch>=2.13
TRANSFORMERS ?= transformers>=5.20,<6
VENV ?= .venv
VIDEO ?=
ARGUMENTS ?=
BIN := $(VENV)/bin
# What was asked for; when it changes, the environment is brought up to date.
WANTED := $(TORCH) $(TRANSFORMERS)

.PHONY: demo test faults evidence ablations benchmark lint format clean

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py $(if $(VIDEO),"$(VIDEO)")

evidence: $(VENV)/.ready
	$(BIN)/python examples/experiments/evidence.py

ablations: $(VENV)/.ready
	$(BIN)/python examples/experiments/ablations.py

test: lint
	$(BIN)/python -m pytest tests

faults: $(VENV)/.ready
	$(BIN)/python -m tests.faults $(ARGUMENTS)

benchmark: $(VENV)/.ready
	$(BIN)/python examples/benchmarks/benchmark.py $(ARGUMENTS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready: pyproject.toml $(VENV)/.wanted
	@echo "installing $(TORCH), $(TRANSFORMERS) and the rest into $(VENV): some minutes the first time"
	$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)" "$(TRANSFORMERS)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	@touch $@

$(VENV)/.wanted: FORCE
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo '$(WANTED)' | cmp --silent - $@ || echo '$(WANTED)' > $@

FORCE:

clean:
	rm -rf $(VENV) demo_output evidence_output ablations_output benchmark_output
