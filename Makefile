# Everything runs in .venv, made here; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
# Two workers of one thread each; a file stays on one worker (tests/conftest.py), and the slowest files start first.
PARALLEL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder
COVERAGE := --cov --cov-report=term:skip-covered
# What compares floats with a peer's, with level 0's, or with its own by another way.
PARITY := $(addprefix tests/test_,$(addsuffix .py,adapter batches codebook evaluate foreign inject invariants level0 life \
	lora merge nf4 packed peft_files pretrained qlora requantize transformer))

.PHONY: demo book test test-long test-quick test-thorough test-kernels test-llm mutants bench clean
.DEFAULT_GOAL := demo

demo: .venv/.installed  ## install, then teach the shipped model naval code
	$(BIN)/minilora demo

book: .venv/.installed  ## run every lesson and write the site to minilora-book/
	$(BIN)/minilora book minilora-book

test: .venv/.installed-test  ## install with the peers as oracles, then run everything, style, types and coverage included
	$(BIN)/python -m pytest $(PARALLEL) $(COVERAGE)

test-quick: .venv/.installed-test  ## ten cases a property, and what is marked slow left out
	HYPOTHESIS_PROFILE=dev $(BIN)/python -m pytest $(PARALLEL) -m "not slow and not llm"

test-thorough: .venv/.installed-test  ## tens of thousands of cases, for hours
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest $(PARALLEL)

test-kernels: .venv/.installed-test  ## parity and properties with torch's other CPU kernels, on one thread and on two
	for kernels in default avx2; do for threads in 1 2; do \
		echo "ATEN_CPU_CAPABILITY=$$kernels, threads: $$threads"; \
		ATEN_CPU_CAPABILITY=$$kernels MINILORA_THREADS=$$threads $(BIN)/python -m pytest $(PARITY) || failed=1; \
	done; done; test -z "$$failed"

test-long: .venv/.installed-test  ## what takes minutes to hours: kills by the hundred, many seeds; before closing an issue
	$(BIN)/python -m pytest -m long tests

test-llm: .venv/.installed-llm smollm2/config.json  ## the tests that need SmolLM2-135M-Instruct; fetches 93 MB once
	$(BIN)/python -m pytest -m llm tests

mutants: .venv/.installed-mutants  ## break the core modules one operator at a time; which of it do the tests notice?
	$(BIN)/python -m tests.mutants

smollm2/config.json: | .venv/.installed-llm
	$(BIN)/python -m minilora.recipes.smollm2 smollm2

bench: .venv/.installed-bench  ## everything beside the peers, about 20 minutes on two cores; writes the README's table
	$(BIN)/minilora bench

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

.venv/.installed-mutants: .venv/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,mutants]"
	touch $@

.venv/.installed-llm: .venv/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,llm]"
	touch $@

.venv/.installed-bench: .venv/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,bench]"
	touch $@

clean:
	rm -rf .venv minilora-demo minilora-book smollm2 build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* .mutants
