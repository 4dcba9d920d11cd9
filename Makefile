# Needs Python >= 3.11 and make, nothing else. `make demo` and `make test` set up what they need; a
# second run installs nothing again. PYTHON chooses the interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3
TASK ?= acronym
MODEL ?= bundled
PYTEST_ARGS ?=
BENCH_ARGS ?=
EAP_IG ?=
MIB ?=
FUZZ_ARGS ?=
SWEEP_TASKS ?= acronym greater-than ioi
SMALL_ARGS ?= acronym greater-than ioi
COMPARE_MODEL ?= bundled
COMPARE_ARGS ?= acronym greater-than ioi
CONTROLS ?= shuffled seeds
PUBLIC ?=
PUBLIC_ARGS ?=

SOURCES := pyproject.toml
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-optimum test-exchange lint format docs bench bench-smoke bench-optimum bench-results alphas paper-sweep results small-results compare-results public controls search-results gradual-cost search-profile wheel-test clean check-python test-oldest fuzz node-modules runtimes guard-results serve-load

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -1); Python 3.11 or newer is needed:" >&2; \
	  echo "make: install it, or name another one: make PYTHON=python3.12 ..." >&2; exit 1; }

# Each environment has a stamp for what it holds. The package is installed in place (-e).
.venv/.installed: $(SOURCES) constraints.txt | check-python
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[cpu]'
	@touch $@

.venv/.installed-test: .venv/.installed
	.venv/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[cpu,genai,test,browser]'
	@touch $@

.venv/.installed-bench: .venv/.installed-test
	.venv/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[cpu,genai,test,bench]'
	@touch $@

.venv/.installed-runtimes: .venv/.installed-test
	.venv/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[cpu,genai,test,browser,runtimes]'
	@touch $@

.venv/.installed-docs: .venv/.installed
	.venv/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[cpu,docs]'
	@touch $@

.venv-optimum/.installed: $(SOURCES) constraints-optimum.txt | check-python
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/python $(PIP_INSTALL) -c constraints-optimum.txt -e '.[cpu,genai,optimum,test]'
	@touch $@

.venv-exchange/.installed: constraints-exchange.txt | check-python
	$(PYTHON) -m venv .venv-exchange
	.venv-exchange/bin/python $(PIP_INSTALL) -c constraints-exchange.txt torch transformer-lens datasets matplotlib tabulate
	.venv-exchange/bin/python $(PIP_INSTALL) -c constraints-exchange.txt --no-deps circuitkit
	@touch $@

.venv-oldest/.installed: | check-python
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP_INSTALL) onnxruntime==1.18.1 'numpy<2'
	@touch $@

# 1.15 is the oldest that Python 3.11 has a wheel of.
.venv-opset17/.installed: | check-python
	$(PYTHON) -m venv .venv-opset17
	.venv-opset17/bin/python $(PIP_INSTALL) onnxruntime==1.15.1 'numpy<2'
	@touch $@

demo: .venv/.installed  ## Set up, run the main job on one task, print its result (TASK=, MODEL=)
	@mkdir -p demo
	.venv/bin/export-circuit --task $(TASK) --model $(MODEL) --out demo/model.onnx --report --force

test: .venv/.installed-test  ## Set up, run the tests by default: a few examples of everything (PYTEST_ARGS=)
	.venv/bin/python -m pytest -m 'not slow' $(PYTEST_ARGS)

test-all: .venv/.installed-test  ## All tests, and of each property all examples
	EXPORT_CIRCUIT_TESTS=thorough .venv/bin/python -m pytest $(PYTEST_ARGS)

test-optimum: .venv-optimum/.installed  ## The tests by default with Optimum's versions, in an environment of its own
	.venv-optimum/bin/python -m pytest -m 'not slow' $(PYTEST_ARGS)

# EAP-IG and MIB are on no package index: clone github.com/hannamw/MIB-circuit-track with its submodule, and give both folders.
test-exchange: .venv/.installed-test .venv-exchange/.installed  ## Others' readers on our graph files (EAP_IG=folder MIB=folder)
	EXPORT_CIRCUIT_EXCHANGE_PYTHON=.venv-exchange/bin/python EXPORT_CIRCUIT_EXCHANGE_EAP_IG=$(EAP_IG) \
	  EXPORT_CIRCUIT_EXCHANGE_MIB=$(MIB) .venv/bin/python -m pytest tests/exchange $(PYTEST_ARGS)

test-oldest: .venv/.installed-test .venv-oldest/.installed .venv-opset17/.installed  ## The files in the oldest ONNX Runtimes: 1.18, with --opset 17 1.15
	EXPORT_CIRCUIT_OPSET_20_PYTHON=.venv-oldest/bin/python EXPORT_CIRCUIT_OPSET_17_PYTHON=.venv-opset17/bin/python \
	  .venv/bin/python -m pytest tests/graph/test_oldest_runtime.py $(PYTEST_ARGS)

fuzz: .venv/.installed  ## Throw 10,000 inputs at exported graphs: no crash, no wrong answer (FUZZ_ARGS=)
	.venv/bin/python benchmarks/fuzz_graphs.py $(FUZZ_ARGS)
# For tests of what is exported for JavaScript; the packages' own install scripts would fetch GPU libraries.
node-modules: tests/js/node_modules/.package-lock.json  ## The JavaScript runtimes that the tests use, where npm is

tests/js/node_modules/.package-lock.json: tests/js/package-lock.json
	cd tests/js && npm ci --ignore-scripts --no-audit --no-fund

lint: .venv/.installed-test  ## ruff and mypy --strict
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/.installed-test  ## Let ruff mend what it can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: .venv/.installed-docs  ## A site from docs/ and the docstrings, in docs/_build/html; warnings are errors
	.venv/bin/python -m sphinx --fail-on-warning --keep-going -q -b html docs docs/_build/html
	@echo "wrote docs/_build/html/index.html"

bench: .venv/.installed-test  ## Run the benchmarks (BENCH_ARGS="--size smoke --benchmark-json=out.json")
	.venv/bin/python -m pytest benchmarks --benchmark-only $(BENCH_ARGS)

bench-smoke: .venv/.installed-test  ## The inference benchmarks on a tiny model, in seconds: that they run
	.venv/bin/python -m pytest benchmarks/test_inference.py --benchmark-only --size smoke $(BENCH_ARGS)

bench-optimum: .venv-optimum/.installed bench  ## The benchmarks with Optimum's export among the contestants

bench-results: .venv/.installed-bench .venv-optimum/.installed  ## Measure inference anew, write tables, bars and plots
	mkdir -p build
	.venv/bin/python -m pytest benchmarks/test_inference.py --benchmark-only --benchmark-json=build/inference.json \
	  $(BENCH_ARGS)
	.venv/bin/python benchmarks/inference_results.py build/inference.json

alphas: .venv/.installed  ## Choose the tasks' default thresholds anew (minutes)
	.venv/bin/python benchmarks/sweep_alpha.py

# `compare` has what the curves are drawn with.
paper-sweep: .venv/.installed-test  ## Run the paper's protocol, write docs/sweeps.md (SWEEP_TASKS=, MODEL=)
	.venv/bin/python benchmarks/paper_sweep.py --model $(MODEL) $(SWEEP_TASKS)

results: .venv/.installed  ## Run the main job on every task and write the tables of docs/benchmarks.md (MODEL=smollm2)
	.venv/bin/python benchmarks/main_job.py --model $(MODEL)

small-results: .venv/.installed  ## Run the gradual search and write the table of docs/small-circuits.md (SMALL_ARGS=)
	.venv/bin/python benchmarks/small_circuits.py $(SMALL_ARGS)

guard-results: .venv/.installed  ## Measure the scope guard on the bundled tasks, into docs/guard.md (GUARD_ARGS=)
	.venv/bin/python benchmarks/guard_table.py $(GUARD_ARGS)

compare-results: .venv/.installed-bench  ## Compare circuits with what one would do instead, into docs/compare (COMPARE_ARGS=, COMPARE_MODEL=)
	.venv/bin/python benchmarks/compare_results.py --model $(COMPARE_MODEL) $(COMPARE_ARGS)

public: .venv/.installed-bench  ## Run the default job and baselines on a folder of public task files: docs/compare.md (DATA=folder, PUBLIC_ARGS="--lines 500")
	@test -n "$(DATA)" || { echo "make: say where the task files are: make public DATA=folder" >&2; exit 1; }
	.venv/bin/python benchmarks/public_results.py $(PUBLIC_ARGS) "$(DATA)"

controls: .venv/.installed  ## Is a budget kept on 20 seeds, and do shuffled answers end at chance: docs/evidence.md (CONTROLS=, an hour)
	for which in $(CONTROLS); do .venv/bin/python benchmarks/controls.py $$which --model $(MODEL) || exit 1; done

# The C program needs onnxruntime_c_api.h, which the wheel does not ship: EXPORT_CIRCUIT_ORT_INCLUDE names its folder.
runtimes: .venv/.installed-runtimes .venv-optimum/.installed  ## Run every form of a file in every runtime that is here, write docs/runtimes.md
	.venv/bin/python benchmarks/runtimes.py

search-results: .venv/.installed  ## Measure searches anew, and the cost model against them (ten minutes)
	.venv/bin/python benchmarks/search_results.py
	.venv/bin/python benchmarks/cost_table.py

gradual-cost: .venv/.installed  ## Measure the parts of a gradual search, and the cost model against them (minutes)
	.venv/bin/python benchmarks/gradual_cost.py
	.venv/bin/python benchmarks/gradual_table.py

search-profile: .venv/.installed  ## See where the time of a search goes
	.venv/bin/python benchmarks/profile_search.py

serve-load: .venv/.installed-test  ## Load a server with 100,000 requests, compare every answer, write the table of docs/serving.md (minutes)
	.venv/bin/python benchmarks/serve_load.py --write

# The wheel must do its job alone: a new environment, an empty folder, nothing of this tree in reach.
wheel-test: constraints.txt | check-python  ## Build the wheel, install it alone, run it in an empty folder
	rm -rf build && mkdir -p build/wheel-test/empty
	$(PYTHON) -m venv build/wheel-test/venv
	build/wheel-test/venv/bin/python $(PIP_INSTALL:install=wheel) --no-deps --wheel-dir build/wheel-test .
	build/wheel-test/venv/bin/python $(PIP_INSTALL) -c constraints.txt \
	  "$$(ls build/wheel-test/export_circuit-*.whl)[cpu]"
	cd build/wheel-test/empty && ../venv/bin/export-circuit --task acronym --model bundled --out model.onnx
	cd build/wheel-test/empty && ../venv/bin/export-circuit inspect model.onnx && test -s model.json
	rm -rf build

clean:  ## Remove environments, caches and outputs
	rm -rf .venv .venv-optimum .venv-exchange .venv-oldest .venv-opset17 build dist demo docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
