# Everything here needs only Python 3.11 or newer, git and make; `make` alone lists the targets.
PYTHON ?= python3
PYTEST_FLAGS ?= -q -n 2 --dist loadfile
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PY := .venv/bin/python
STAMP := .venv/installed
EVALS := $(wildcard nbs/evals/*.ipynb)
TWINS := $(patsubst nbs/%.ipynb,pct/%.py,$(wildcard nbs/*.ipynb) $(EVALS))

# What the canvases that come with the package are trained with: the quickstart's size and optimiser; tales in four stages,
# puzzles with every refinement supervised.
TALES := --progressive --corpus tales --checkpoint_name tales --stage_epochs 1 --batch_size 32 \
	--hidden_size 128 --num_layers 2 --num_heads 4 --num_refine_steps 2 --position_embedding --qk_norm \
	--optimizer muon --muon_lr 0.0025 --lr 3e-3 --compile
SUDOKU := --corpus sudoku-6 --checkpoint_name sudoku-6 --stage_epochs 1 --batch_size 64 --mask_ratio 0.03 1 \
	--hidden_size 128 --num_layers 2 --num_heads 4 --num_refine_steps 4 --position_embedding --qk_norm \
	--reinject --deep_supervision --optimizer muon --muon_lr 0.04 --lr 3e-3 --precision fp32 --compile

PUZZLE := .15.2......12..1..65.....3...5...2..

# One thread a process: the notebooks are tested side by side, and small tensors gain nothing from more.
OFFLINE := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Jupyter's debugger warns of frozen modules at every kernel's start
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help demo test text sync reports compare bench docs pages guard wheel gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: PARAMETERS := -p progress true
demo: report-quickstart ## train, sample and score a small model in minutes: reports/quickstart.html
	@$(PY) .ci/summary.py reports/quickstart/report.json
	@echo "Notebook:    reports/quickstart.ipynb"
	@echo "Web page:    reports/quickstart.html"
	@echo "Checkpoint:  under reports/quickstart/"
	@echo "And a puzzle, solved by the canvas that comes with shimmer, cell by cell in reports/quickstart/puzzle.gif:"
	@.venv/bin/shimmer generate --checkpoint sudoku-6 --template $(PUZZLE)
	@.venv/bin/shimmer animate --checkpoint sudoku-6 --template $(PUZZLE) --policy top-k --output reports/quickstart/puzzle.gif --overwrite > /dev/null

test: $(STAMP) ## check that everything is in step, then test the notebooks and the library
	$(PY) .ci/check_in_step.py
	$(PY) -m ruff check --quiet .
	$(PY) -m mypy --no-error-summary
	$(OFFLINE) .venv/bin/nbdev_test
	$(OFFLINE) $(PY) -m pytest $(PYTEST_FLAGS) tests

text: $(TWINS) ## write a text twin of every notebook into pct/ (one you have edited since is kept)

sync: $(STAMP) ## write the edited twins back, run what changed, clean, export (NB="10_lira 15_samplers", RUN=1 to run anyway)
	$(PY) .ci/sync.py $(if $(RUN),--run) $(NB)

.PHONY: canvas figures
canvas: $(STAMP) ## train, measure and describe the canvases that come with the package: shimmer/canvases
	.venv/bin/shimmer train $(TALES) --overwrite
	$(PY) .ci/make_canvas.py checkpoints/tales
	.venv/bin/shimmer train $(SUDOKU) --overwrite
	$(PY) .ci/make_canvas.py checkpoints/sudoku-6

figures: $(STAMP) ## draw the pictures in nbs/images: architectures, the map of the rooms, a tale coming into being
	$(PY) .ci/draw_figures.py

reports: $(EVALS:nbs/evals/%.ipynb=report-%) ## run every evaluation notebook into reports/

compare: $(STAMP) ## compare reports made here with the kept ones, within tolerances (NAME="speed epochs", or all)
	$(PY) .ci/compare_report.py $(NAME)

bench: report-speed ## time the models on this machine: reports/speed.html

docs: $(STAMP) ## render the book with Quarto into _docs/, or stage and check it where Quarto is missing
	$(PY) .ci/make_book.py

pages: $(STAMP) ## make the tables and pages that come from reports and modules, and README.md
	$(PY) .ci/make_pages.py
	$(PY) .ci/make_readme.py

guard: $(STAMP) ## give new chapters the cell that installs the library in Colab
	$(PY) .ci/guard.py

wheel: $(STAMP) ## build the wheel and use it in an environment that has nothing else
	$(PY) .ci/check_wheel.py

.PHONY: gpu-pack
gpu-pack: $(STAMP) ## pack code, encoded stories and a few wheels for a machine with a GPU: reports/gpu (LIMIT=20000 stories)
	$(PY) .ci/gpu.py pack $(if $(LIMIT),--limit $(LIMIT))

gpu: ## in the unpacked archive, on a machine with a GPU: test, train and measure for nine minutes, without a network
	$(PYTHON) .ci/gpu.py run $(GPU_FLAGS)

clean: ## remove what was made, except the environment, the text twins and the reports
	rm -rf _proc _docs nbs/nbdev.yml build dist *.egg-info .pytest_cache .hypothesis
	find nbs shimmer tests .ci -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +

report-%: nbs/evals/%.ipynb $(STAMP)
	@$(PY) .ci/run_report.py $* $(PARAMETERS)

pct/%.py: nbs/%.ipynb | $(STAMP)
	@mkdir -p $(@D)
	@$(PY) -m jupytext --quiet --to py:percent --output $@ $<
	@echo "wrote $@"

$(STAMP): constraints.txt pyproject.toml setup.py settings.ini
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d; Shimmer needs 3.11 or newer: name one, as in make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Installing into .venv, once: some minutes, most of them for the download of PyTorch"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install -qq --disable-pip-version-check --root-user-action ignore -c constraints.txt -e '.[dev]'
	@touch $@
