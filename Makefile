# sottovoce: every target sets up what it needs; `make help` lists them.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# Real speech and a Whisper tokenizer folder that some benchmarks need; docs/corpora.md says how to arrange them.
SPEECH     ?=
VOCABULARY ?=
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test interop check lint types docs bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install everything with pip; nothing to do when current

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[export,synthesis,dev]'
	@touch $@

demo: setup ## the whole way offline: synthetic audio to a benchmarked student and its report
	$(BIN)/sottovoce run recipes/demo/recipe.yaml

# Two processes of one thread each: the tests' models are too small for a second thread to help.
WORKERS ?= 2
test: setup ## unit and stage tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

# Loaders that do not install beside transformers 5, each in an environment of its own, built when missing.
INTEROP := .interop
LOADERS := optimum transformers-js faster-whisper genai litert int4

interop: setup $(LOADERS:%=$(INTEROP)/%/.installed) $(INTEROP)/page/.installed ## do other people's loaders say what torch says? (needs node 20)
	$(BIN)/pytest -rs tests/interop
	$(INTEROP)/litert/bin/python -m pytest tests/unit/distill/exporters/test_tflite_export.py tests/unit/distill/exporters/test_mobile_graphs.py
	$(INTEROP)/litert/bin/python -m pytest tests/unit/distill/exporters/test_compressed_exports.py -k tflite
	$(INTEROP)/int4/bin/python -m pytest -rs tests/unit/distill/exporters/test_compressed_tensors_export.py

# The exact torch is the CPU build; a range takes gigabytes of CUDA along.
$(INTEROP)/optimum/.installed: PACKAGES := torch==2.13.0 optimum-onnx==0.1.0 'transformers<4.58' onnxruntime soundfile
$(INTEROP)/faster-whisper/.installed: PACKAGES := faster-whisper==1.2.1 soundfile
$(INTEROP)/litert/.installed: PACKAGES := torch==2.13.0 --editable '.[onnx,tflite,synthesis,dev]'
$(INTEROP)/int4/.installed: PACKAGES := torch==2.13.0 --editable '.[onnx,int4,synthesis,dev]'
$(INTEROP)/genai/.installed: PACKAGES := openvino-genai==2026.4.1.0 soundfile
$(INTEROP)/%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(PACKAGES)
	@touch $@

# Without scripts: onnxruntime-node's own only fetches CUDA.
$(INTEROP)/transformers-js/.installed:
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(@D) @huggingface/transformers@4.3.1
	@touch $@

# What `sottovoce serve` otherwise puts into the user's cache.
$(INTEROP)/page/.installed:
	$(BIN)/python -m eval.page.web_packages $(@D)
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test ## lint, types, tests

docs: setup ## these pages and the Python API as a site in build/site; strict: no broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

bench: setup $(INTEROP)/int4/.installed ## one JSON line a benchmark: the demo's exports, labelling, training, compression, true sizes
	@test -n "$(SPEECH)" && test -n "$(VOCABULARY)" || { echo "make bench: set SPEECH and VOCABULARY, see docs/corpora.md" >&2; exit 2; }
	$(BIN)/sottovoce run recipes/demo/recipe.yaml --from benchmark --until benchmark
	@$(BIN)/python -m tests.bench.finished_run recipes/demo/recipe.yaml
	@$(BIN)/python -m tests.bench.label $(SPEECH) $(VOCABULARY)
	@$(BIN)/python -m tests.bench.train $(SPEECH) $(VOCABULARY)
	@$(BIN)/python -m tests.bench.compress $(SPEECH)
	@$(BIN)/python -m tests.bench.ranks $(SPEECH) $(VOCABULARY)
	@$(BIN)/python -m tests.bench.vocabulary $(SPEECH) $(VOCABULARY) --tokens 12000
	@$(BIN)/python -m tests.bench.winograd $(SPEECH) $(VOCABULARY)
	@$(BIN)/python -m tests.bench.speculative $(SPEECH) --draft runs/demo/train/model --vocabulary $(VOCABULARY) --shapes base small
	@$(INTEROP)/int4/bin/python -m tests.bench.weights $(SPEECH)
	@for shape in tiny base small; do \
	  $(BIN)/python -m distill.random_model $$shape $(VOCABULARY) runs/shapes/$$shape && export SHAPE=$$shape && \
	  $(BIN)/sottovoce run recipes/true-shape --from benchmark && $(BIN)/python -m tests.bench.finished_run recipes/true-shape || exit; \
	done

clean: ## remove runs and caches; keep the environment
	rm -rf runs .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
