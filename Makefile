# `make demo` and `make test` do everything on a fresh Debian 12 machine; see HACKING.md for the rest.
SHELL := /bin/bash
BUILD ?= build
PRESET ?= default
JOBS ?= $(shell nproc)
export PATH := $(CURDIR)/build/venv/bin:$(PATH)
# One intra-op thread unless said otherwise, and no spinning: two threads on a shared machine cost more than they give.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive

.PHONY: help setup configure build command test demo selftest sanitize install format tidy bench clean
help:
	@echo "make demo      set up, build, and learn whom to trust among twenty labellers (prints the report's path)"
	@echo "make test      set up, build, and run every test"
	@echo "make command   the command $(BUILD)/bilevel alone"
	@echo "make build     everything: the libraries, the command, the Python module and the tests"
	@echo "make selftest  the command's own check of this build against closed forms and published numbers"
	@echo "make install   headers, libraries, command and CMake package into PREFIX (default: ./install)"
	@echo "make sanitize  the tests under AddressSanitizer and UBSan, in build-sanitize"
	@echo "make format    clang-format on the sources      make tidy   clang-tidy on the files that differ from BASE (origin/main)"
	@echo "make bench     the benchmarks of bench/          make clean  remove what was built"

setup:
	@cmake/setup.sh

# Configured again when set-up chose another LibTorch; ninja itself sees changes of the CMake files.
configure: setup
	@[ $(BUILD)/build.ninja -nt build/torch.path ] || \
	  { cmake --preset $(PRESET) -DLibTorch_ROOT="$$(<build/torch.path)" >$(BUILD)/configure.log 2>&1 || { cat $(BUILD)/configure.log; exit 1; }; }

build: configure
	@cmake --build $(BUILD) -j $(JOBS)

command: configure
	@cmake --build $(BUILD) -j $(JOBS) --target bilevel_cli

test: build
	@cd $(BUILD) && ctest --no-tests=error --output-on-failure -j $(JOBS)

demo: command
	@$(BUILD)/bilevel reweight --out runs/demo-$$(date +%Y%m%d-%H%M%S)

selftest: command
	@$(BUILD)/bilevel selftest

install: build
	@cmake --install $(BUILD) --prefix "$(or $(PREFIX),install)"

sanitize:
	@mkdir -p build-sanitize && $(MAKE) --no-print-directory test BUILD=build-sanitize PRESET=sanitize

format:
	@git ls-files '*.h' '*.cpp' | xargs clang-format-15 -i

# Clang takes no precompiled header of g++'s, so it reads the header itself.
tidy: configure
	@mkdir -p $(BUILD)/tidy && cp $(BUILD)/CMakeFiles/bilevel_core.dir/cmake_pch.hxx $(BUILD)/tidy/
	@sed 's#[^ ]*/cmake_pch\.hxx#$(abspath $(BUILD))/tidy/cmake_pch.hxx#; s# -fpch-preprocess##' $(BUILD)/compile_commands.json >$(BUILD)/tidy/compile_commands.json
	@git diff --name-only --diff-filter=d $${BASE:-origin/main} -- '*.cpp' | xargs -r clang-tidy-15 -p $(BUILD)/tidy --quiet

bench: build
	@for script in bench/*.sh; do bash $$script; done

clean:
	@rm -rf build build-*
