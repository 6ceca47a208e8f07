# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make their own environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# ONNX Runtime 1.24 and later writes K/V in place; Python 3.10 (JetPack 6) gets an older one: make demo EMITTER=portable
EMITTER ?= native
OUT ?= out
# Any build of PyTorch exports; a CPU build is the smallest. Point pip at one, or set TORCH to another version.
TORCH ?= torch==2.13.0
RTX := onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 tensorrt-rtx-cu13-bindings==1.7.1.116 polygraphy

.PHONY: demo test fleet lowest gate lint bench evaluate clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[completion,export,serve,postgres,test]"
	# A real TensorRT builder for a CPU, x86-64 Linux only; without it its tests say so and are skipped.
	$(BIN)/python -m pip install --quiet --no-deps $(RTX) || echo "no TensorRT-RTX for this platform: its tests are skipped"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/videomar export models/demo -o $(OUT)/demo-fp32 --emitter $(EMITTER)
	$(BIN)/videomar generate $(OUT)/demo-fp32 --image examples/ball.png --prompt "$$(cat examples/ball.txt)" -o $(OUT)/ball.mp4
	@echo "the clip is $(OUT)/ball.mp4"

# Neighbouring tests share what is made for them: each process takes a run of them, and steals when it has none left.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal

# Ray Serve, really run. No part of `make test`: its packages take longer to install, and its start takes minutes where
# other things run beside it.
fleet: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[fleet]"
	$(BIN)/python -m pytest tests/serving/test_ray.py

# The least versions that pyproject.toml allows, on the oldest Python, run what this version exports.
lowest: $(VENV)/.installed
	$(BIN)/videomar export models/demo -o $(OUT)/demo-portable --emitter portable
	$(BIN)/python .ci/lowest.py $(OUT)/demo-portable

# Every graph of the demo model through TensorRT-RTX's builder, no GPU needed.
gate: $(VENV)/.installed
	$(BIN)/videomar build --gate models/demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check . --extend-exclude "*.md"
	# mypy cannot follow the mapping of folders to packages: it is shown the packages where they will be.
	mkdir -p build/types/videomar
	ln -sfn $(CURDIR)/videomar/* $(CURDIR)/runtime build/types/videomar
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p videomar.runtime

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/clip.py

evaluate: $(VENV)/.installed
	$(BIN)/videomar export models/demo -o $(OUT)/demo-fp32 --emitter $(EMITTER)
	$(BIN)/videomar evaluate $(OUT)/demo-fp32 --json $(OUT)/evaluate.json

clean:
	rm -rf $(OUT) build
