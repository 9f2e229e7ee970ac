# `make` shows what there is to do. Every target makes .venv on first use and installs the tested versions into it.
# To choose: PYTHON=python3.12, TORCH_INDEX=https://download.pytorch.org/whl/cpu (or .../cu130) for another build of torch.

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
MINUTES := 10
SECONDS := 540
OP :=
ENGINE := interpreter
ENVIRONMENTS :=
BESIDE :=
MACHINES :=
TESTS :=
SEED :=
QUICK :=
TRITON := 3.9.0
export IMAGE := $(firstword $(sort $(wildcard examples/*.png)))
export QUESTION := what digit is at the top left?

.DEFAULT_GOAL := help
.PHONY: help demo test test-versions test-machines test-messages test-harness test-suites test-exports test-executorch test-page test-static test-ray test-hub test-gpu bench bench-llama gpu-day compile-report emulate fuzz format lint tiny counts docs

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## ask an example image a question, write out/demo.png (IMAGE=... QUESTION=...)
	@mkdir -p out
	$(BIN)/firebolt ask "$$IMAGE" "$$QUESTION" --grounding out/demo.png

test: $(READY) ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-versions: $(READY) ## run the models' tests with the oldest and newest versions admitted (ENVIRONMENTS=newest: one)
	$(BIN)/python tests/support/versions.py $(ENVIRONMENTS) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) \
	    $(if $(ENVIRONMENTS),,--out docs/versions.md)

test-messages: $(READY) ## print all that the commands say where they cannot go on, to out/messages.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/messages.py out/messages.md

test-harness: $(READY) ## run the embedded model in lmms-eval, in an environment of its own, and compare
	$(BIN)/python tests/support/harness.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) --out docs/harness.md

test-suites: $(READY) ## ask of both models what transformers asks of its own, and write the table
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/suites.py --out docs/suites.md

test-exports: $(READY) ## compare exported graphs with PyTorch, in each engine, and write the page
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/exports.py --out docs/exports.md

test-executorch: $(READY) ## compare exported ExecuTorch programs with PyTorch, in an environment of their own; the page
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/executorch_exports.py --out docs/executorch.md

test-page: $(READY) ## ask on the page of `firebolt demo` in a headless browser, in an environment of its own; its picture
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/demo_page.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) \
	    --picture docs/demo.png

test-static: $(READY) ## ask the page of `firebolt export page` in a headless browser, without a network; its picture
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/static_page.py --picture docs/browser.png

test-ray: $(READY) ## answer a file by examples/bulk_ray.py in Ray, in an environment of its own, and kill its workers
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/ray_pipeline.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

test-hub: $(READY) ## load the exported kernels by the hub's library, in an environment of its own
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/hub_kernels.py

test-gpu: $(READY) ## run the kernels' tests on this machine's GPU, compiled, bfloat16 too
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "this PyTorch sees no GPU")'
	TRITON_INTERPRET=0 $(BIN)/pytest -m "triton or gpu"

test-machines: $(READY) ## run all tests as on four CPUs, in random order (MACHINES="sse avx2-zen" TESTS="tests/cmm" SEED=1 QUICK=1)
	$(BIN)/python tests/support/machines.py --machines "$(MACHINES)" --tests "$(TESTS)" --seed "$(SEED)" \
	    $(if $(QUICK),--quick)

bench: $(READY) ## measure the kernels at a few sizes (all of them: firebolt bench kernels)
	OMP_NUM_THREADS=1 $(BIN)/firebolt bench kernels --quick

bench-llama: $(READY) ## build llama.cpp from the package index into out/llama, once: a peer of `firebolt bench answer --peers`
	$(BIN)/python -m firebolt_vl.bench.llama_build out/llama

gpu-day: $(READY) ## test and measure all on this machine's GPU, in 9 minutes (SECONDS=540), to docs/gpu/; goes on if cut short
	env -u TRITON_INTERPRET $(BIN)/firebolt bench gpu-day --seconds $(SECONDS)

compile-report: $(READY) ## compile every kernel for GPUs that need not be there, at a few sizes, for these in turn
	env -u TRITON_INTERPRET $(BIN)/firebolt bench compile --quick --in-turn

emulate: $(READY) ## run every compiled kernel without a GPU, at a few sizes (all: firebolt bench emulate)
	env -u TRITON_INTERPRET OMP_NUM_THREADS=1 $(BIN)/firebolt bench emulate --quick

fuzz: $(READY) ## hunt for counterexamples to the property tests (OP=film MINUTES=10 ENGINE=emulator); keeps what it finds
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/fuzz.py --minutes $(MINUTES) --engine $(ENGINE) $(OP)

format: $(READY) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(READY) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --project pyproject.toml --pythonpath $(BIN)/python

counts: $(READY) ## count parameters, long functions, repeated blocks, type errors (BESIDE=another/checkout)
	@$(BIN)/python tests/support/counts.py $(if $(BESIDE),--root $(BESIDE)) --root .

docs: $(READY) ## write the generated pages and the picture of docs/ again
	$(BIN)/python docs/api.py
	$(BIN)/python docs/configuration.py
	$(BIN)/python docs/architecture.py

tiny: $(READY) ## train the embedded model again (40 minutes at most on two cores)
	$(BIN)/firebolt train tiny seeds=3 --out out/tiny
	cp out/tiny/*.jinja out/tiny/*.json out/tiny/*.safetensors firebolt_vl/tiny
	rm firebolt_vl/tiny/train.json
	$(BIN)/python -m firebolt_vl.evaluate.familiar_exam --write

# torch comes first and alone: an index that offers one build of it (CPU or CUDA) serves torch and nothing else. A build
# for GPUs brings the Triton that it was made with; beside a build for CPUs the tested one is installed.
$(READY): setup.py constraints.txt
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3) none; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	done; \
	if [ "$$python" = none ]; then \
	    echo "Python 3.11 or newer is needed and none was found. Install it (apt install python3 python3-venv;" \
	         "brew install python; python.org), or say where it is: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$python cannot make virtual environments. On Debian and Ubuntu: apt install" \
	         "$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; \
	    exit 1; \
	fi; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear $(VENV)
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -c 'import triton' 2>/dev/null || [ "$$(uname)" != Linux ] || $(BIN)/python -m pip install "triton==$(TRITON)"
	$(BIN)/python -m pip install -c constraints.txt -e '.[train,video,eval,trl,serve,onnx,openvino,test,lint]'
	@touch $@
