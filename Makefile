# The commands of this repository; `make` alone lists them.
#   PYTHON       interpreter for .venv                        (python3)
#   PIP_OPTIONS  more options for pip install, for instance    ()
#                --extra-index-url <the CPU wheel index named on pytorch.org's install page>
#   STUDY        a DICOM folder of your own, demo and viewer  (a synthetic chest CT)
#   READING      what demo and viewer show                    (the lungs)
#   MODELS       folder of installed models, demo and viewer  (pacs-ai-data/models)
#   OUT          where `make demo` leaves its results         (demo-out)
#   LIMIT        seconds that `make prove` may take, or the   (19 minutes;
#                proof within `make nightly`                   4.5 hours)
#   TESTS        which tests `make test` runs                  (tests)
#   WORKERS      how many of them at a time; many wait         (3)
#   NIGHTLY      which tests `make nightly` runs, by marker    (all)
#   PROFILE      what `make viewer` has the node send         (ohif)

PYTHON ?= python3
PIP_OPTIONS ?=
STUDY ?=
READING ?=
MODELS ?=
OUT ?= demo-out
LIMIT ?=
PROFILE ?= ohif
TESTS ?= tests
WORKERS ?= 3
NIGHTLY ?=
#: tests that measure time and memory: they run after all others, and no more of them at a time than there are processors
MEASURING := tests/rows tests/prove tests/integration/test_receive_guard.py tests/integration/test_scu.py

BIN := .venv/bin
SHOWN = $(if $(READING),--reading "$(READING)") $(if $(MODELS),--models "$(MODELS)")
PYTEST := $(BIN)/python -m pytest --durations=15
#: $(1) which tests, $(2) how many at a time, $(3) and (4) how long they and those that measure may take in all
define IN_TWO_STEPS
most=0; measuring=0; \
OMP_NUM_THREADS=1 timeout $(3) $(PYTEST) --dist loadfile $(1) -n $(2) tests $(addprefix --ignore=,$(MEASURING)) || most=$$?; \
OMP_NUM_THREADS=1 timeout $(4) $(PYTEST) --dist loadfile $(1) -n 2 $(MEASURING) || measuring=$$?; \
echo "Exit status of the tests that measure: $$measuring; of all others, above them: $$most"; \
tests=$$((most > measuring ? most : measuring))
endef

export PYTHON PIP_OPTIONS

.PHONY: help setup demo viewer test prove check lint types layers fmt nightly bench docs clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'
	@sed -n 's/^#   /  /p' $(MAKEFILE_LIST)

setup: .venv/.installed  ## make .venv and install pacs_ai into it

demo: .venv/.installed  ## send a study through a node on this machine, and prove the results
	@$(BIN)/pacs-ai demo --out "$(OUT)" $(if $(STUDY),--study "$(STUDY)") $(SHOWN)

viewer: .venv/.installed  ## show a study's results in the OHIF viewer, until Ctrl-C
	@$(BIN)/python scripts/viewer.py --profile "$(PROFILE)" $(if $(STUDY),--study "$(STUDY)") $(SHOWN)

test: .venv/.installed-dev  ## run the tests
ifeq ($(TESTS),tests)
	@$(call IN_TWO_STEPS,-m "not nightly",$(WORKERS),1h,30m); exit $$tests
else
	$(PYTEST) -m "not nightly" $(TESTS)
endif

check: lint types layers test  ## everything that must pass before a commit

lint: .venv/.installed-dev  ## style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.installed-dev  ## types
	$(BIN)/mypy

layers: .venv/.installed-dev  ## which part may import which
	$(BIN)/lint-imports

fmt: .venv/.installed-dev  ## format the sources
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

prove: .venv/.installed-dev  ## kill the node, cut its power, break its disk, make it wrong: 20 minutes
	$(BIN)/python scripts/prove.py $(if $(LIMIT),--limit $(LIMIT))

nightly: .venv/.installed-dev  ## run the long tests as well, and the long proof: ten hours at most
	@$(call IN_TWO_STEPS,-m "$(NIGHTLY)" --timeout=3600 --hypothesis-profile=further,2,4h,1h); \
	$(BIN)/python scripts/prove.py --night $(if $(LIMIT),--limit $(LIMIT)) && exit $$tests

bench: .venv/.installed-dev  ## measure receiving, encoding, delivering, inference, and the whole journey
	$(BIN)/python scripts/bench.py receive
	$(BIN)/python scripts/bench.py front
	$(BIN)/python scripts/bench.py journey
	$(BIN)/python scripts/bench_encode.py compare
	$(BIN)/python scripts/bench_deliver.py
	$(BIN)/python scripts/bench.py infer windows
	$(BIN)/python scripts/bench.py infer meshnet

docs: .venv/.installed-dev  ## write the reference pages, and hold all pages against the code
	$(BIN)/python scripts/make_docs.py
	$(PYTEST) tests/docs

clean:  ## remove everything that make made
	rm -rf .venv demo-out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	@MAKE_GOAL=demo scripts/setup.sh run

.venv/.installed-dev: pyproject.toml constraints.txt
	@MAKE_GOAL=test scripts/setup.sh dev
