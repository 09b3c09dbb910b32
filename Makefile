# make demo   the whole product in one run, about eight minutes on two cores: build/demo/index.html
# make test   the test suite; `make lint types test` is what CI runs
# Everything is installed into .venv by pip, with the versions of constraints.txt. Options for pip: make test PIP_ARGS=...

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo released test lint types format accuracy bench bench-gpu install clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[cpu,openvino,tensorrt-rtx,pictures,train,dev]'
	touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	rm -rf build/demo
	$(BIN)/python examples/demo.py --output build/demo

# From a checkpoint of the released research code to a ranking, on synthetic files: about a minute.
released: $(INSTALLED)
	rm -rf build/released
	$(BIN)/python examples/released_checkpoint/run.py --output build/released

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy needs the packages where they will be installed: in the checkout it reads only a third of the files.
types: $(INSTALLED)
	rm -rf build/typecheck
	$(BIN)/python -m pip install $(PIP_ARGS) --quiet --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p camp_sdk

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Both variants, three seeds each: about 40 minutes on two cores. Finished runs are kept and not repeated.
accuracy: $(INSTALLED)
	$(BIN)/python benchmarks/accuracy.py --output build/accuracy

# Pair scoring, first answers, memory and training steps: about ten minutes on two idle cores. Results and plot are written
# to benchmarks/results/.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/pairs.py --output build/bench
	$(BIN)/python benchmarks/training_step.py

# Pair scoring on an NVIDIA GPU, in minutes; nothing is downloaded. Runs in .venv if there is one, otherwise with what PYTHON
# has. Needs camp-sdk[train], cuda-bindings, and onnxruntime or (in its place) onnxruntime-gpu; of a PyTorch with CUDA,
# onnxruntime-gpu, tensorrt and tensorrt-rtx-cu13 it measures those that are there. Results: benchmarks/results/gpu.json.
bench-gpu:
	$(if $(wildcard $(INSTALLED)),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --output build/bench-gpu

clean:
	rm -rf build $(VENV)
