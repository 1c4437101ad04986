PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint type format bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed  ## train and test a small IPGAN on 400 real faces (minutes on a CPU) and print its report's path
	$(BIN)/lightning fit --config experiments/quickstart.yaml
	$(BIN)/lightning test --config experiments/quickstart.yaml --ckpt_path last
	@echo && echo "Open in a browser:" && $(BIN)/idface report runs/quickstart

test: lint type  ## lint, types and tests
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

lint: .venv/installed  ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

type: .venv/installed  ## types
	$(BIN)/mypy

format: .venv/installed  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/installed  ## speed and memory beside bare PyTorch and dlib
	$(BIN)/pytest --override-ini addopts= -s tests/benchmarks

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3 found. Give one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11. Give another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
