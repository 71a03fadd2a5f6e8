# make demo   set up, then train and evaluate on a generated dataset
# make test   set up, then run the test suite without what is slow
# make test-all  set up, then run all tests: also kill loops, long fuzzing, many processes
# make lint   ruff (check and format) and mypy
# make setup  only set up: .venv with the pinned requirements
# make lock   update requirements.txt from the ranges in pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-all lint setup lock
.DELETE_ON_ERROR:

demo: setup
	rm -rf runs/demo # of the previous demo
	$(BIN)/python train.py run.dir=runs/demo
	$(BIN)/python evaluate.py checkpoint=runs/demo/checkpoints/last.pt
	@echo
	@echo "The run is in runs/demo. To view it: $(BIN)/tensorboard --logdir runs"

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

# uv installs torch and torchvision as a pair from one index; plain pip may mix incompatible builds.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . # so that scripts/ find detector/
	@touch $@

lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev \
	    --no-header --no-annotate pyproject.toml --output-file requirements.txt
