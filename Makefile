# Two commands set everything up: `make demo` and `make test`. Each makes .venv on first use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Spinning OpenMP threads of two test workers would fight over the cores.
TEST_WORKERS ?= 2

.PHONY: demo test check docs dist clean

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/core
	$(BIN)/python examples/demo.py

test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --quiet

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev
	$(BIN)/python -m sphinx -W --quiet -b html docs docs/_build/html

dist: $(VENV)/dev
	$(BIN)/python tools/make_dist.py

clean:
	rm -rf $(VENV) docs/_build dist
