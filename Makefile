# Everything a person does here, one word each. `make` alone prints the words.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
BUILD := build
LIBRARY := dataplane/engine/_native.abi3.so
QUIET := -q --disable-pip-version-check
FUZZ_SECONDS ?= 60
APP ?= billing

# Our own builds are strict; a wheel built elsewhere, by another compiler, is not.
export DATAPLANE_WERROR ?= 1

C_SOURCES := $(wildcard native/src/*.c native/src/*.h native/include/*.h)
LOAD_SOURCES := $(wildcard native/load/*.[ch])
C_FORMATTED := $(C_SOURCES) $(LOAD_SOURCES) $(wildcard native/test/*.[ch] native/fuzz/*.[ch] benchmarks/load/*.[ch])
PY_FORMATTED := $(wildcard dataplane tests benchmarks)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test quick fmt lint san san-e2e san-tree fuzz nemesis bench check clean native build

help:
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(LIBRARY) ## set up what is missing: .venv, tools, the C library, the command .venv/bin/dataplane
	@:

run: setup ## run the example app billing with two demo upstreams, in the foreground
	@$(BIN)/dataplane demo --app $(APP)

test: setup native ## run all tests: native, unit, property, integration, end-to-end
	@$(BIN)/pytest -q

quick: setup native ## run the tests that take seconds: native, unit, property
	@$(BIN)/pytest -q -m 'not slow' $(wildcard tests/unit tests/property)

fmt: $(STAMPS)/tools ## format all Python and C
	@$(BIN)/ruff check -q --fix-only $(PY_FORMATTED)
	@$(BIN)/ruff format -q $(PY_FORMATTED)
	@$(BIN)/clang-format -i $(C_FORMATTED)

lint: setup ## ruff, mypy --strict, import rules, clang-format, gcc -fanalyzer with warnings as errors
	@$(BIN)/ruff check -q $(PY_FORMATTED)
	@$(BIN)/ruff format -q --check $(PY_FORMATTED)
	@$(BIN)/mypy dataplane tests $(wildcard benchmarks/*.py)
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/clang-format --dry-run --Werror $(C_FORMATTED)
	@$(MAKE) --no-print-directory -C native lint
	@$(MAKE) --no-print-directory -C benchmarks/load lint

# A copy of the tree with a sanitised library in it, so that the normal one stays as it is. The
# interpreter itself is not sanitised: what it never frees is not our leak. First the tests that
# drive the engine in their own process, with all of Python's memory watched, too.
SAN := $(BUILD)/san
SAN_TESTS = $(wildcard tests/unit/engine tests/property tests/conformance tests/integration/test_http_*.py tests/integration/test_moving_*.py tests/integration/test_tcp_*.py)
SAN_E2E ?= tests/e2e
LIBASAN = $(realpath $(shell $(or $(CC),cc) -print-file-name=libasan.so))
SAN_RUN = cd $(SAN) && LD_PRELOAD="$(LIBASAN)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1
san: san-tree ## run the engine's tests on a library with the address and undefined sanitizers
	@$(SAN_RUN) PYTHONMALLOC=malloc $(CURDIR)/$(BIN)/python -P -m pytest -q -p no:cacheprovider \
	    --capture=sys --timeout 240 $(SAN_TESTS)

# The installed command, and workers that are sealed; tests/support/sanitised_tree.py tells how.
san-e2e: san-tree ## run the end-to-end tests with that library in every sealed worker
	@$(BIN)/python tests/support/sanitised_tree.py $(SAN) "$(LIBASAN)" $(VENV)
	@$(SAN_RUN) .venv/bin/python -P -m pytest -q -p no:cacheprovider --timeout 240 $(SAN_E2E)

san-tree: setup
	@mkdir -p $(SAN)
	@rm -rf $(SAN)/dataplane $(SAN)/native $(SAN)/tests $(SAN)/benchmarks
	@cp -R dataplane native tests benchmarks pyproject.toml README.md LICENSE $(SAN)/
	@cp -R configs $(SAN)/ 2>/dev/null || true
	@find $(SAN)/dataplane -name '*.so' -delete
	@cd $(SAN) && DATAPLANE_SANITIZE=address,undefined $(CURDIR)/$(BIN)/python -W ignore \
	    -c 'from setuptools import setup; setup()' -q build_ext --inplace >/dev/null

fuzz: setup ## run each fuzz target for FUZZ_SECONDS (60), and the properties on new examples
	@$(MAKE) --no-print-directory -C native fuzz FUZZ_SECONDS=$(FUZZ_SECONDS)
	@$(BIN)/pytest -q --hypothesis-profile=search tests/property tests/unit/image/test_config_fuzz.py

NEMESIS_SECONDS ?= 60
nemesis: setup ## break things at random under checked load for NEMESIS_SECONDS (60); NEMESIS_SEED=N repeats one
	@NEMESIS_SECONDS=$(NEMESIS_SECONDS) NEMESIS_SEED=$(NEMESIS_SEED) $(BIN)/pytest -q -s tests/e2e/test_nemesis.py

BENCH ?=
bench: setup ## measure beside the peers, swaps under load, a hundred apps; BENCH=--quick for a short run
	@$(BIN)/python benchmarks/bench.py $(BENCH)
	@$(BIN)/python benchmarks/swap.py $(filter --quick,$(BENCH))
	@$(BIN)/python benchmarks/many.py $(filter --quick,$(BENCH))

check: ## what CI runs
	@./.ci/run

clean: ## remove all that was built, .venv included
	@$(MAKE) --no-print-directory -C native clean 2>/dev/null || true
	@$(MAKE) --no-print-directory -C benchmarks/load clean 2>/dev/null || true
	@rm -f dataplane/cli/dp_load
	@rm -rf $(VENV) $(BUILD) dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find dataplane -name '*.so' -delete
	@find dataplane tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

native: $(STAMPS)/tools ## run the C library's own tests, sanitised
	@$(MAKE) --no-print-directory -C native test

build: $(LIBRARY) ## rebuild the C library if its sources changed
	@:


# --- what is set up, and when again ----------------------------------------------------------
# A stamp is younger than all it was made from; `touch` comes last, so a step that failed is done
# again.

# The names of what the package needs, to build and to run: pyproject.toml is the one list.
define NAMES
import tomllib
told = tomllib.load(open("pyproject.toml", "rb"))
print(*told["build-system"]["requires"], *told["project"]["dependencies"], sep="\n")
endef
export NAMES

$(STAMPS)/venv:
	@PYTHON=$(PYTHON) sh .ci/needs
	@echo "setup: $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install $(QUIET) --upgrade 'pip>=25.1'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/tools: pyproject.toml $(STAMPS)/venv
	@echo "setup: packages and tools"
	@$(BIN)/python -c "$$NAMES" | $(BIN)/pip install $(QUIET) --group dev -r /dev/stdin
	@touch $@

# The whole package where its description changed, the library alone where only C did. One at a
# time: two that build in one folder would link each other's half-written objects.
$(LIBRARY): $(C_SOURCES) $(LOAD_SOURCES) native/src native/include native/load pyproject.toml dataplane/engine/_build.py $(STAMPS)/tools
	@mkdir -p $(BUILD)
	@if [ -n "$(filter-out native/%,$?)" ]; then \
	    echo "setup: the package, editable, with its C library"; \
	    PYTHONWARNINGS=ignore flock $(BUILD)/lock \
	        $(BIN)/pip install $(QUIET) --no-build-isolation --no-deps -e .; \
	else \
	    echo "build: the C library"; \
	    flock $(BUILD)/lock $(BIN)/python -W ignore \
	        -c 'from setuptools import setup; setup()' -q build_ext --inplace >/dev/null; \
	fi
	@touch $@
