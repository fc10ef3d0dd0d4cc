# make demo   environment, install, a transcript
# make test   environment, install, all tests that need no torch
# make parity the reference extra (torch, transformers) and the comparison with it
# make lint   ruff and mypy
# make sanitize  the native kernels' tests under the compiler's sanitizers; make neon: on an emulated ARM processor, if there is one

PYTHON ?= python3
VENV ?= .venv
# One version of the oracle for everybody; where the package index has a CPU-only wheel of it, pip takes that.
REFERENCE_TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test parity lint sanitize neon clean

# A change to the native sources installs again, which compiles them.
$(STAMP): pyproject.toml setup.py $(wildcard qwen_asr_jax/kernels/*/src/*)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; name one with: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(STAMP)
	@$(BIN)/python scripts/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest tests

parity: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(REFERENCE_TORCH) -e ".[dev,reference]"
	$(BIN)/python -m pytest tests/parity --run-parity

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

NATIVE = $(BIN)/python tests/native/build.py

sanitize: $(STAMP)
	$(NATIVE) --sanitize=address,undefined,float-cast-overflow -- --quick || test $$? = 77
	$(NATIVE) --sanitize=thread -- --quick --case pools || test $$? = 77
	$(NATIVE) --gpu --sanitize=address,undefined -- --quick || test $$? = 77

neon: $(STAMP)
	$(NATIVE) --cxx=aarch64-linux-gnu-g++ --emulator=qemu-aarch64 -- --quick || test $$? = 77

clean:
	rm -rf $(VENV) .cache build *.egg-info qwen_asr_jax/kernels/cpu/libqwen_asr_cpu.* qwen_asr_jax/kernels/gpu/libqwen_asr_gpu.*
