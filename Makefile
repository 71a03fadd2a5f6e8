# make demo   set up, then train and evaluate on a generated dataset
# make test   set up, then run the test suite without what is slow, in two processes (WORKERS=8: in eight)
# make test-all  set up, then run all tests: also kill loops, long fuzzing, many processes
# make docs   after make demo: the pictures in docs/images, and docs/roi_pooling.html
# make lint   ruff (check and format) and mypy
# make setup  only set up: .venv with the pinned requirements
# make lock   update requirements.txt from the ranges in pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-all docs lint setup lock
.DELETE_ON_ERROR:

demo: setup
	rm -rf runs/demo # of the previous demo
	$(BIN)/python train.py run.dir=runs/demo
	$(BIN)/python evaluate.py checkpoint=runs/demo/checkpoints/last.pt
	@echo
	@echo "The run is in runs/demo. To view it: $(BIN)/tensorboard --logdir runs"

# Each worker, and what it starts, computes with one thread: the workers share the cores. worksteal leaves the tests of a
# file, which share what is slow to make, to one worker as far as it can.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

SHAPES := data/shapes
PHOTOGRAPH := $(VENV)/photograph.jpg
NEW := runs/docs
DRAW := $(BIN)/python scripts/visualize.py

docs: setup
	@test -f runs/demo/checkpoints/last.pt || { echo "make docs draws the run of make demo: start that first"; exit 2; }
	rm -rf $(NEW) # of the previous make docs
	cp "$$($(BIN)/python -c 'import matplotlib; print(matplotlib.get_data_path())')/sample_data/grace_hopper.jpg" $(PHOTOGRAPH)
	$(DRAW) roi_pool --out $(NEW)/roi_pool
	$(DRAW) data $(SHAPES) --split train --out $(NEW)/data
	$(DRAW) proposals $(PHOTOGRAPH) --out $(NEW)/photograph
	$(DRAW) proposals $(SHAPES) --split test --drawn 2 --out $(NEW)/proposals
	$(DRAW) augment --settings augment=scale --out $(NEW)/augment
	$(DRAW) features --checkpoint runs/demo/checkpoints/last.pt --image $(SHAPES)/JPEGImages/test_0001.jpg --out $(NEW)/features
	$(DRAW) detection --checkpoint runs/demo/checkpoints/last.pt --image $(SHAPES)/JPEGImages/test_0001.jpg \
	    --score-threshold 0.5 --out $(NEW)/detection
	cp $(NEW)/roi_pool/roi_pool.gif $(NEW)/roi_pool/comparison.png $(NEW)/proposals/recall.png docs/images
	cp $(NEW)/features/features.png $(NEW)/detection/detection.gif $(NEW)/detection/stages.png docs/images
	$(BIN)/python scripts/build_page.py --checkpoint runs/demo/checkpoints/last.pt --image $(SHAPES)/JPEGImages/test_0050.jpg
	cp $(NEW)/augment/augmentation.png $(NEW)/augment/sampled_rois.png docs/images
	cp $(NEW)/data/sheet_03.png docs/images/objects.png
	cp $(NEW)/photograph/hierarchy.png docs/images/selective_search.png
	cp $(NEW)/proposals/test_0001.png docs/images/proposals.png
	cp runs/demo/precision_recall/kite.png docs/images/precision_recall.png
	$(BIN)/python scripts/take_screenshots.py runs/demo

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
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra onnx --extra timm \
	    --no-header --no-annotate pyproject.toml --output-file requirements.txt
