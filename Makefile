# Everything runs in .venv, made here; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
# Two workers of one thread each; a file stays on one worker (tests/conftest.py), and the slowest files start first.
PARALLEL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder
COVERAGE := --cov --cov-report=term:skip-covered
# What compares floats with a peer's, with level 0's, or with its own by another way.
PARITY := tests/lora tests/nf4 tests/formats tests/model tests/test_level0.py tests/test_foreign.py \
	tests/test_invariants.py tests/test_life.py tests/training/test_batches.py tests/training/test_evaluation.py

.PHONY: demo serve book test test-long test-quick test-thorough kernel test-nf4 test-kernels test-llm test-scale test-flower test-gpu \
	mutants bench bench-quality clean
.DEFAULT_GOAL := demo

demo: .venv/.installed  ## install, then teach the shipped model naval code
	$(BIN)/minilora demo

serve: .venv/.installed-serve  ## install what a server needs, then the shipped base and the adapters of ./hub on port 8000
	$(BIN)/minilora serve

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

kernel: .venv/.installed  ## compile minilora/nf4/kernel.c into this checkout (installing did so, if there was a compiler)
	$(BIN)/python -m minilora.nf4.kernel --build

test-nf4: .venv/.installed-test  ## four bits with each variant of the kernel that the processor has, and without it
	$(BIN)/python -m minilora.nf4.kernel --build
	for kernel in off plain avx2 avx512; do \
		said=$$(MINILORA_KERNEL=$$kernel $(BIN)/python -m minilora.nf4.kernel 2>&1) || { echo "$$kernel: not here"; continue; }; \
		echo "$$said"; MINILORA_KERNEL=$$kernel $(BIN)/python -m pytest tests/nf4 minilora/nf4 tests/test_invariants.py || failed=1; \
	done; test -z "$$failed"

test-llm: .venv/.installed-llm smollm2/config.json  ## the tests that need SmolLM2-135M-Instruct; fetches 93 MB once
	$(BIN)/python -m pytest -m llm tests

test-gpu: .venv/.installed-test  ## what needs a CUDA card, and two benchmarks there; says which card it was
	$(BIN)/python -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else exit('no CUDA card here'))"
	$(BIN)/python -m pytest -m gpu tests
	$(BIN)/python -m benchmarks.forward --device cuda
	$(BIN)/python -m benchmarks.train_step --device cuda

test-scale: .venv/.installed-scale  ## several processes as machines: torchrun, Ray Serve; the long ones too (Flower: test-flower)
	$(BIN)/python -m pytest -m "long or not long" tests/scale

test-flower: .venv-flower/.installed  ## federated rounds on Flower, its processes on loopback too; about ten minutes
	.venv-flower/bin/python -m pytest -m "long or not long" tests/scale/test_flower.py tests/scale/test_privacy.py

mutants: .venv/.installed-mutants  ## break the core modules one operator at a time; which of it do the tests notice?
	$(BIN)/python -m tests.mutants

smollm2/config.json: | .venv/.installed-llm
	$(BIN)/python -m minilora.recipes.smollm2 smollm2

bench: .venv/.installed-bench  ## everything beside the peers, about 20 minutes on two cores; writes the README's table
	$(BIN)/minilora bench

bench-quality: .venv/.installed-bench  ## what learns and what forgets: hours from nothing; the first three go on from the recorded runs
	$(BIN)/python -m benchmarks.forgetting
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.overfitting
	$(BIN)/python -m benchmarks.quality --threads 1
	$(BIN)/python -m benchmarks.facts --threads 1
	$(BIN)/python -m benchmarks.report

.venv/.installed: pyproject.toml constraints.txt
	@echo "installing into .venv, torch (1 GB) among it: some minutes without a word"
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

.venv/.installed-serve: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[serve]"
	touch $@

.venv/.installed-scale: .venv/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,scale]"
	touch $@

.venv-flower/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-flower
	grep -vE '^(rich|uvicorn|starlette|fastapi)==' constraints.txt > .venv-flower/constraints.txt
	.venv-flower/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-flower/constraints.txt \
		--editable ".[flower]" pytest hypothesis dp-accounting==0.6.0
	touch $@

.venv/.installed-bench: .venv/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,bench]"
	touch $@

clean:
	rm -rf minilora/nf4/_kernel.* .venv .venv-flower minilora-demo minilora-book smollm2 build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* .mutants
