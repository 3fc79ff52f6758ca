# Everything runs inside .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
PYTHONS ?= python3.10 python3.12 python3.13
RECIPE ?= recipes/fsdino/tiny.yaml
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MAKE_ASSET := $(BIN)/python -m fsdino.assets.make
BENCH := $(BIN)/python -m benchmarks

.DEFAULT_GOAL := help
.PHONY: help install distill test test-all versions audit lint docs assets bench methods ablation tables clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Set up .venv with the package and its tools

$(STAMP): setup.cfg setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(STAMP)

distill: $(STAMP) ## The main job: cache, distill, train, evaluate, export (RECIPE=recipes/SYSTEM/NAME.yaml ARGS="--seed 1")
	$(BIN)/fsdino run --config $(RECIPE) $(ARGS)

test: $(STAMP) ## Run the tests (one thread a worker: more would wait for each other)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP) ## Run all tests, with those that start many processes or trace large graphs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist worksteal

versions: ## Install and test on other Pythons, one after the other (PYTHONS="python3.10 python3.13"; 6 GB each, deleted)
	for python in $(PYTHONS); do rm -rf $(VENV)-other && $$python -m venv $(VENV)-other && \
		$(VENV)-other/bin/pip install --quiet ".[dev]" && OMP_NUM_THREADS=1 $(VENV)-other/bin/python -m pytest \
		tests/base tests/models tests/methods tests/predict tests/data -m "not slow" || exit 1; done; rm -rf $(VENV)-other

audit: $(STAMP) ## Known weaknesses of what is installed, as PyPI tells (pip-audit, in a venv of its own)
	test -x $(VENV)-audit/bin/pip-audit || ($(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit)
	$(VENV)-audit/bin/pip-audit --strict --path $$(echo $(VENV)/lib/python*/site-packages)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP) ## Build the pages of docs/ into site/ (open site/index.html); broken links fail
	$(BIN)/python -m mkdocs build --strict

assets: $(STAMP) ## Make the bundled tiny weights anew (about five hours on two cores)
	$(MAKE_ASSET) encoder --out runs/assets/encoder/coarse.safetensors
	$(MAKE_ASSET) encoder --start runs/assets/encoder/last.ckpt --epochs 64 --fine_share 1 --thin_share 0.875 --seed 1 \
		--folder runs/assets/encoder-fine
	$(MAKE_ASSET) encoder --start fsdino/assets/tiny_encoder.safetensors --epochs 38 --fine_share 1 --thin_share 0.75 \
		--lr 1.5e-3 --precision 32-true --folder runs/assets/encoder-finer
	$(MAKE_ASSET) encoder --start runs/assets/encoder-finer/last.ckpt --epochs 40 --fine_share 1 --thin_share 0.7 \
		--lr 1.2e-3 --seed 3 --precision 32-true --folder runs/assets/encoder-finest
	$(MAKE_ASSET) sam
	$(MAKE_ASSET) sam2
	$(BENCH).accuracy.teachers
	OMP_NUM_THREADS=1 $(MAKE_ASSET) bundle

bench: $(STAMP) ## Measure what two cores can measure in 15 minutes
	$(BENCH).cost.params
	$(BENCH).cost.speed --what [start,classes,reader,methods] --repetitions 1
	$(BENCH).accuracy.few_shot --devices 2 --shots [1,5]

methods: $(STAMP) ## SANSA and FSSAM on the embedded world, three seeds each (about an hour on one core)
	$(BENCH).accuracy.methods
	$(BENCH).cost.methods

ablation: $(STAMP) ## The paper's ablation on the embedded world: runs, pairs, plot and table
	$(BENCH).accuracy.experiments ablation
	$(BENCH).accuracy.pairs ablation
	$(BENCH).report.figures --names [ablation]
	$(BENCH).report.table

tables: $(STAMP) ## Write benchmarks/results into the README, as tables and plots
	$(BENCH).report.figures
	$(BENCH).report.table

clean: ## Remove runs, the site and caches (keeps .venv)
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache
