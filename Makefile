# Everything runs in .venv, made here; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean
.DEFAULT_GOAL := demo

demo: .venv/.installed  ## install, then teach the shipped model naval code
	$(BIN)/minilora demo

test: .venv/.installed-test  ## install with the peers as oracles, then run everything, style and types included
	$(BIN)/python -m pytest

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv minilora-demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
