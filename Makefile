# A fresh machine with Python >= 3.11, make and git needs only `make reproduce` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
unexport PYTHONDONTWRITEBYTECODE  # without stored bytecode every start takes twice as long

.PHONY: setup lab reproduce test test-long notebooks bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	command -v uv > /dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	PATH="$$PATH:$(BIN)" uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

lab: setup  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

reproduce: setup  ## notebooks, figures, an HTML page each and the claims, from the archive, into output/
	$(BIN)/rwc reproduce

test: export OMP_WAIT_POLICY = PASSIVE  # a waiting thread that spins keeps the core from the process it waits for
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

test-long: export OMP_WAIT_POLICY = PASSIVE
test-long: setup  ## faults by the dozen and archived runs trained again; stores the table of faults that docs/faults.md shows
	$(BIN)/python -m pytest -m long --ignore=tests/app/test_time_budget.py --ignore=tests/app/test_lab.py
	$(BIN)/python -m pytest -m long --numprocesses=0 tests/app/test_lab.py tests/app/test_time_budget.py  # alone: other work disturbs them

notebooks: setup  ## run the notebooks again and store their outputs and figures in the repository
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(BIN)/rwc claims --into README.md --into docs/claims.md

bench: setup  ## measure on a quiet machine, store the tables and quote their ratios in docs/speed.md; `rwc bench gpu` on a GPU
	$(BIN)/python benchmarks/tracker.py --json benchmarks/results/tracker.json
	$(BIN)/python benchmarks/training.py --json benchmarks/results/training.json
	$(BIN)/python benchmarks/engines.py --json benchmarks/results/engines.json
	$(BIN)/python benchmarks/sweep.py --json benchmarks/results/sweep.json
	$(BIN)/python benchmarks/scheduling.py --json benchmarks/results/scheduling.json
	$(BIN)/python benchmarks/clustering.py --json benchmarks/results/clustering.json
	$(BIN)/python benchmarks/memory.py --json benchmarks/results/memory.json
	$(BIN)/python benchmarks/compare.py --json benchmarks/results/compare.json
	$(BIN)/python benchmarks/readme.py

clean:
	rm -rf .venv output .pytest_cache .ruff_cache
