# `make demo` and `make test` are all a newcomer needs: Python 3.11 or later and make.
PYTHON ?= python3
BIN := .venv/bin
# Two test workers with two threads each on two cores would fight.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE KMP_BLOCKTIME=0

.PHONY: demo test test-fast test-search test-lens4 lint bench bench-gpu docs

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch .venv/installed

demo: .venv/installed
	$(BIN)/copyscope demo

test: .venv/installed lint
	$(ONE_THREAD) $(BIN)/pytest -n 2

# While editing: what is quick.
test-fast: .venv/installed
	$(ONE_THREAD) $(BIN)/pytest -n 2 -m "not slow"

# Property tests alone, with new examples each time and 20 times as many.
test-search: .venv/installed
	$(ONE_THREAD) $(BIN)/pytest -n 2 -m hypothesis --hypothesis-profile search

# TransformerLens 4, which has the bridge only, in an environment of its own.
.venv-lens4/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-lens4
	grep -v '^transformer-lens==' constraints.txt > .venv-lens4/constraints.txt
	.venv-lens4/bin/pip install --quiet --disable-pip-version-check -c .venv-lens4/constraints.txt \
	  "transformer-lens>=4,<5" -e ".[gguf]" beartype hypothesis pytest pytest-timeout pytest-xdist
	touch .venv-lens4/installed

test-lens4: .venv-lens4/installed
	$(ONE_THREAD) .venv-lens4/bin/pytest -n 2 tests/interp

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv/installed
	$(BIN)/python tests/benchmarks/train_speed.py
	$(BIN)/python tests/benchmarks/score_speed.py
	$(BIN)/python tests/benchmarks/ablate_speed.py
	$(BIN)/python tests/benchmarks/demo_speed.py

# On a machine with an NVIDIA GPU.
bench-gpu: .venv/installed
	$(BIN)/python tests/benchmarks/gpu_train.py
	$(BIN)/python tests/benchmarks/gpu_score.py

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
