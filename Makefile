# Everything runs inside .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
RECIPE ?= recipes/tiny.yaml
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install distill test lint assets bench methods ablation tables clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Set up .venv with the package and its tools

$(STAMP): setup.cfg setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(STAMP)

distill: $(STAMP) ## The main job: cache, distill, train, evaluate, export (RECIPE=recipes/NAME.yaml ARGS="--seed 1")
	$(BIN)/fsdino run --config $(RECIPE) $(ARGS)

test: $(STAMP) ## Run the tests (one thread a worker: more would wait for each other)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist worksteal

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

assets: $(STAMP) ## Make the bundled tiny weights anew (about three hours on two cores)
	$(BIN)/fsdino pretrain --out runs/assets/encoder/coarse.safetensors
	$(BIN)/fsdino pretrain --start runs/assets/encoder/last.ckpt --epochs 64 --fine-share 1 --thin-share 0.875 --seed 1 \
		--folder runs/assets/encoder-fine
	$(BIN)/fsdino teach
	$(BIN)/python benchmarks/bundle.py
	$(BIN)/fsdino pretrain-sam2
	$(BIN)/python benchmarks/mini_sam2.py

bench: $(STAMP) ## Measure what two cores can measure in 15 minutes
	$(BIN)/python benchmarks/params.py --csv benchmarks/results/params.csv
	$(BIN)/python benchmarks/speed.py --csv benchmarks/results/speed.csv --what start classes reader methods --repetitions 1
	$(BIN)/python benchmarks/few_shot.py --csv benchmarks/results/few_shot.csv --devices 2 --shots 1 5

methods: $(STAMP) ## SANSA and FSSAM on the embedded world, three seeds each (about an hour on one core)
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/methods.py --times

ablation: $(STAMP) ## The paper's ablation on the embedded world: runs, pairs, plot and table
	$(BIN)/python benchmarks/experiments.py ablation
	$(BIN)/python benchmarks/pairs.py ablation
	$(BIN)/python benchmarks/figures.py ablation
	$(BIN)/python benchmarks/table.py

tables: $(STAMP) ## Write benchmarks/results into the README, as tables and plots
	$(BIN)/python benchmarks/figures.py
	$(BIN)/python benchmarks/table.py

clean: ## Remove runs and caches (keeps .venv)
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
