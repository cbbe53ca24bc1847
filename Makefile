# make run    set up if needed, then train a car that drives: data, V, M, C, a score, a video, a report in runs/
# make test   set up if needed, then everything that CI checks
# make lab    set up if needed, then open the curriculum in JupyterLab
# make doom   set up if needed, then a player of Doom that has only ever dreamt of it, and its scores, in runs/doom
# make clean  remove the set-up; runs/ stays
#
# SETTINGS=laptop            another section of settings.ini for `make run`
# RUN=runs/laptop            another folder for it
# PYTHON=/path/to/python3    another Python than the first fitting one on the PATH
# TORCH_INDEX=https://…      where PyTorch comes from (Linux without a GPU: https://download.pytorch.org/whl/cpu)
# WORKERS=4                  notebooks tested at the same time

SETTINGS ?= quick
RUN ?= runs/car
WORKERS ?= 2
NEWER := 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
                      $$p -c $(NEWER) 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/installed
SAME := diff -rq -x __pycache__ -x .ipynb_checkpoints
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: run doom test lab clean

run: $(READY)
	$(BIN)/python -m solutions.train --settings $(SETTINGS) --run $(RUN)

doom: RUN = runs/doom
doom: $(READY)
	$(BIN)/python -m solutions.doom --settings $(SETTINGS) --run $(RUN)

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/00_rollouts.ipynb

# Notebooks run two at a time with one thread each; the tests after them have the machine to themselves.
test: export WORLDMODELS_SETTINGS = ci
test: $(READY)
	@echo "== 1/4 notebooks are clean, and worldmodels/ is what they export"
	@rm -rf .venv/before && mkdir .venv/before && cp -R nbs worldmodels .venv/before
	@$(BIN)/nbdev-clean && $(BIN)/nbdev-export
	@$(SAME) .venv/before/nbs nbs && $(SAME) .venv/before/worldmodels worldmodels || \
	    { echo "These files were out of step. They are right now: look at them, then commit them."; exit 1; }
	@echo "== 2/4 nbdev-test: every notebook runs, its exercises solved"
	@rm -rf .venv/filled && $(BIN)/python tests/fill.py .venv/filled
	@OMP_NUM_THREADS=1 $(BIN)/nbdev-test .venv/filled --n-workers $(WORKERS) --cell-timeout 300 --timing
	@echo "== 3/4 nbval: every notebook runs in a kernel, its exercises untouched, and marked outputs are what is stored"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout 300 nbs
	@echo "== 4/4 tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations 10 -m "not timing"
	@$(BIN)/python -m pytest -q -m timing
	@echo "All checks passed."

clean:
	rm -rf .venv .pytest_cache *.egg-info
	find nbs worldmodels solutions tests -name __pycache__ -prune -exec rm -rf {} +
	-@git config --local --unset include.path '^\.\./\.gitconfig$$' 2>/dev/null

# The stamp is older than what it depends on: install again. An environment that was left half-made is made anew.
$(READY): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c $(NEWER) || { echo "Python 3.11 or newer is needed; found: `$(or $(PYTHON),python3) --version 2>&1`."; \
	    echo "If you have one elsewhere: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks its venv module."; \
	    echo "On Debian and Ubuntu: sudo apt install python3-venv (python3.12-venv for python3.12)"; exit 1; }
	@echo "Installing into .venv what constraints.txt names: PyTorch, Gymnasium, VizDoom, Stable-Baselines3, JupyterLab and what they need."
	@echo "About 0.6 GB to download; on Linux PyTorch brings CUDA too, several GB more, unless TORCH_INDEX is given"
	@echo "(make TORCH_INDEX=https://download.pytorch.org/whl/cpu $(MAKECMDGOALS))."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --no-deps --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	-@git config --local --get-all include.path 2>/dev/null | grep -qxF ../.gitconfig || \
	    git config --local --add include.path ../.gitconfig 2>/dev/null
	@touch $@
