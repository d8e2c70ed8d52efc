# SPDX-License-Identifier: Apache-2.0
#
# `make` compiles the custom ops; it needs a C++ compiler and onnxruntime's headers (scripts/ort_headers.sh finds them), no Python.
# The targets that run Python make .venv ready first (scripts/env.sh). `make help` lists everything.

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash

# PYTHON and the rest may come from the environment or the command line; the scripts read them from the environment.
export PYTHON ORT_INCLUDE_DIR DEBIAN_MIRROR ORT_OFFLINE

BUILD := custom_ops/build
LIBRARY := libpoptransformer_ops.so
SOURCES := $(sort $(wildcard custom_ops/*.cpp custom_ops/*/*.cpp))

ifeq ($(origin CXX),default)
CXX := g++
endif
CCACHE ?= $(shell command -v ccache 2>/dev/null)
# `make WERROR=` for a compiler whose new warnings nobody has seen yet.
WERROR ?= -Werror
CXXFLAGS ?=
LDFLAGS ?=
# No -march: the kernels pick their instruction set at run time.
COMMON := -std=c++17 -fPIC -fvisibility=hidden -pthread -Wall -Wextra $(WERROR) -DORT_API_MANUAL_INIT -isystem $(BUILD)/include
# nodelete: the pool's threads outlive the session that loaded the library.
LINK := -shared -pthread -Wl,-z,nodelete

FLAGS_release := -O3
FLAGS_sanitize := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined
FLAGS_sanitize-thread := -O1 -g -fno-omit-frame-pointer -fsanitize=thread

# Runs a command in the ready environment: $(call python,LEVEL) ARGUMENTS
python = py="$$(bash scripts/env.sh $(1))" && "$$py"

.PHONY: help all headers limits sanitize sanitize-thread env demo test test-all lint format type bench bench-peers bench-quality \
  bench-memory validate-ipu clean distclean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@printf '%s\n' '' 'Variables, on the command line or in the environment:' \
	  '  PYTHON          an interpreter whose environment is used in place of .venv' \
	  '  ORT_INCLUDE_DIR the folder of onnxruntime_c_api.h; DEBIAN_MIRROR: where to download it from' \
	  '  ARGS            for demo, test and bench*: make demo ARGS="model.topk=5", make test ARGS="-k llama"' \
	  '  CXX CXXFLAGS LDFLAGS CCACHE, and WERROR= to let warnings pass'

# ---- custom ops ----------------------------------------------------------------------------------------------------------

# $(1): folder of the objects and the library, $(2): name of the flags
define variant
OBJECTS_$(2) := $$(SOURCES:custom_ops/%.cpp=$(1)/%.o)

# What the objects were compiled with: rewritten, and so newer than they are, only where something changed.
$(1)/config: FORCE headers
	@mkdir -p $$(@D)
	@{ $$(CXX) --version | head -n 1; readlink $$(BUILD)/include; cksum <$$(BUILD)/include/onnxruntime_c_api.h; \
	   echo '$$(COMMON) $$(FLAGS_$(2)) $$(CPPFLAGS) $$(CXXFLAGS) $$(LINK) $$(LDFLAGS) $$(SOURCES)'; } >$$@.tmp
	@cmp -s $$@.tmp $$@ && rm -f $$@.tmp || mv -f $$@.tmp $$@

# The encoder must choose the same codes on every machine: no product may be fused with a sum.
$(1)/encode/%.o: EXACT := -ffp-contract=off
$(1)/%.o: custom_ops/%.cpp $(1)/config
	@mkdir -p $$(@D)
	$$(strip $$(CCACHE) $$(CXX) $$(COMMON) $$(FLAGS_$(2)) $$(EXACT) $$(CPPFLAGS) $$(CXXFLAGS)) -MMD -MP -MT $$@ -MF $(1)/$$*.d -c $$< -o $(1)/$$*.tmp.o
	@mv -f $(1)/$$*.tmp.o $$@

$(1)/$(LIBRARY): $$(OBJECTS_$(2)) $(1)/config
	$$(CXX) $$(LINK) $$(FLAGS_$(2)) $$(OBJECTS_$(2)) $$(LDFLAGS) -o $$@.tmp
	@mv -f $$@.tmp $$@

-include $$(OBJECTS_$(2):.o=.d)
endef

$(eval $(call variant,$(BUILD),release))
$(eval $(call variant,$(BUILD)/sanitize,sanitize))
$(eval $(call variant,$(BUILD)/sanitize-thread,sanitize-thread))

# A link to the headers in use keeps the compiler's command lines short and free of the user's paths.
headers:
	@$(if $(SOURCES),,echo 'error: no sources: custom_ops/*.cpp are missing from this checkout' >&2; exit 1;) \
	command -v $(firstword $(CXX)) >/dev/null || \
	  { echo 'error: no C++ compiler: $(CXX) was not found. Install one: sudo apt-get install g++' >&2; exit 1; }
	@mkdir -p $(BUILD)
	@found="$$(bash scripts/ort_headers.sh $(BUILD))" && ln -sfn "$$found" $(BUILD)/include

all: $(BUILD)/$(LIBRARY) ## compile the custom ops (the default)
	@echo 'custom ops: $<'

# What the benchmark measures this machine's limits with.
$(BUILD)/limits: bench/limits.cpp custom_ops/common/simd.h custom_ops/common/error.h
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O3 -pthread -Wall -Wextra $(WERROR) -Icustom_ops $(CPPFLAGS) $(CXXFLAGS) $< $(LDFLAGS) -o $@.tmp
	@mv -f $@.tmp $@

limits: $(BUILD)/limits ## compile the program that measures what this machine can do
	@echo 'limits: $<'

sanitize: $(BUILD)/sanitize/$(LIBRARY) ## compile them with the address and undefined-behaviour sanitizers
	@echo 'custom ops: $<'
	@echo "load it with LD_PRELOAD='$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)'" \
	  'ASAN_OPTIONS=detect_leaks=0 POPTRANSFORMER_OPS_LIBRARY=$(abspath $<)'

sanitize-thread: $(BUILD)/sanitize-thread/$(LIBRARY) ## compile them with the thread sanitizer
	@echo 'custom ops: $<'
	@echo "load it with LD_PRELOAD='$$($(CXX) -print-file-name=libtsan.so)'" \
	  'TSAN_OPTIONS=ignore_noninstrumented_modules=1:die_after_fork=0 POPTRANSFORMER_OPS_LIBRARY=$(abspath $<)'

# ---- Python --------------------------------------------------------------------------------------------------------------

env: ## make the Python environment ready (.venv, all requirements)
	@bash scripts/env.sh test

demo: ## set everything up and generate text with SmolLM2-135M-Instruct
	@$(MAKE) --no-print-directory all || \
	  printf '\n%s\n%s\n\n' 'WARNING: the custom ops were not compiled (see above). The demo runs without them, through the' \
	  '         plain ONNX bodies of the same operators: the text is the same, the speed is not.' >&2
	@py="$$(bash scripts/env.sh demo)" && cd examples/llama2 && echo 'examples/llama2: python inference.py $(ARGS)' && \
	  "$$py" inference.py $(ARGS)

# One process for each core; the tests of a file share what they set up.
PYTEST := -m pytest -n auto --dist loadfile

test: all ## set everything up and run the tests, without the slow ones
	@$(call python,test) $(PYTEST) -m 'not slow' $(ARGS)

test-all: all ## run all tests
	@$(call python,test) $(PYTEST) $(ARGS)

lint: ## check style and formatting (ruff)
	@$(call python,test) -m ruff check . && "$$py" -m ruff format --check .

format: ## apply ruff's fixes and formatting
	@$(call python,test) -m ruff check --fix . && "$$py" -m ruff format .

type: ## check types (mypy)
	@$(call python,test) -m mypy

bench: all limits ## compare this engine with the peers that are installed: make bench ARGS="--models smollm2-135m"
	@$(call python,bench) -m bench.compare $(ARGS)

bench-peers: ## install the peers, each in an environment of its own (6 GB)
	@$(call python,test) -m bench.setup_peers $(ARGS)

bench-quality: all ## perplexity of each precision against transformers
	@$(call python,test) -m bench.quality $(ARGS)

bench-memory: all ## memory of building, saving and running a large model
	@$(call python,test) -m bench.build_memory $(ARGS)

validate-ipu: ## compare the emulated IPU with measurements, and write the table into docs/ipu.md
	@$(call python,test) -m poptransformer.ipu.validation

clean: ## remove what was built (.venv stays)
	rm -rf $(BUILD) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## and .venv
	rm -rf .venv
