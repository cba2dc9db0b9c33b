# The two commands of the README: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test test-slow install lint clean constraints

# `make test PYTHON=python3.12` rebuilds an environment of another Python.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) --version 2>&1),$(shell $(BIN)/python --version 2>&1))
.PHONY: $(VENV)/.installed
CLEAR := --clear
endif
endif

run: install
	$(BIN)/python -m ray_jobs.run conf/run/smoke.yaml

# The order of the files is kept: those that start a Ray and run longest, tests/jobs, come first.
# Hundreds of processes import the packages: their compiled files are kept.
test: install lint
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "XKD needs Python 3.11 or newer; PYTHON=/path/to/python3.11 make ..." >&2; exit 1; }
	$(PYTHON) -m venv $(CLEAR) $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs mlflow.db mlartifacts

# Pins what is not pinned yet; lines that are taken out first, or `--upgrade`, renew pins.
constraints:
	uv pip compile --universal --python-version 3.11 --extra dev --extra hf --extra mteb --extra onnx --extra serve --extra sign --no-annotate \
		--custom-compile-command 'make constraints' --output-file constraints.txt pyproject.toml
