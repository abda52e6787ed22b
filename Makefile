# Battery-storage edge appliance. `make` alone lists the targets.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.ready
IMAGE   := $(or $(EMS_IMAGE_DIR),build/image$(addprefix -,$(filter-out amd64,$(ARCH))))
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup run demo test lint format docs check-docs bench prove faults fuzz mutation soak lock clean image image-reproducible test-image test-image-long flash

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '%-18s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## the virtual environment in .venv; every other target does it by itself

$(STAMP): requirements-dev.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "setup: no $(PYTHON) found; install Python 3.11 or newer" \
		"(Debian: apt install python3 python3-venv) or name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: $$($(PYTHON) --version) is too old;" \
		"3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "setup: $(PYTHON) has no venv and ensurepip modules;" \
		"install them (Debian: apt install python3-venv)"; exit 1; }
	@echo "setup: installing into $(VENV) (once; needs the network)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock || { echo "setup: the packages of" \
		"requirements-dev.lock could not be installed; see the message of pip above (no network? a proxy?)"; exit 1; }
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

run: $(STAMP)  ## bench and appliance; a scripted site controller charges the rack (HEADLESS=1: without it and the panel)
	@exec $(BIN)/python -m firmware.runner $(if $(filter-out 0,$(HEADLESS)),--headless)

demo: $(STAMP)  ## one judged charge cycle at bench speed 120; log, CSV and plot in build/demo
	@exec $(BIN)/python -m firmware.demo

test: $(STAMP) lint check-docs  ## everything that must hold: lint, types, tests, generated documents
	@$(BIN)/python -m pytest --numprocesses auto --dist loadgroup

lint: $(STAMP)  ## ruff and mypy
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "lint: files above are not formatted; run make format"; exit 1; }
	@$(BIN)/mypy

format: $(STAMP)  ## rewrites the sources in the agreed format
	@$(BIN)/ruff format .

prove: $(STAMP)  ## searches the state machine exhaustively, compares the golden listing, tries the mutants
	@exec $(BIN)/python -m tests.proof

mutation: $(STAMP)  ## changes the code rule by rule; a test must notice (SAMPLE=n: only n changes; WRITE=1: docs/mutation.md)
	@exec $(BIN)/python -m tests.mutation --jobs $$(nproc) $(if $(WRITE),--write) $(if $(SAMPLE),--sample $(SAMPLE))

fuzz: $(STAMP)  ## five million Modbus requests, right and wrong, against a second reading of the specification
	@exec $(BIN)/python -m tests.fuzz

soak: $(STAMP)  ## 30 minutes of random faults and acknowledgement, watched from outside (MINUTES=n, SEED=n)
	@exec $(BIN)/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

faults: $(STAMP)  ## injects every fault, measures against promises (ONLY=ID,.. QUICK=1 SEED=n; WRITE=1: also docs/safety-case.md)
	@exec $(BIN)/python -m tests.faults $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED)) \
		$(if $(WRITE),--write)

docs: $(STAMP)  ## writes the documents that are made from tables
	@$(BIN)/python -m firmware.docgen
	@$(BIN)/python -m tests.conformance

check-docs: $(STAMP)  ## fails when a generated document differs from its table, or names a test that is not there
	@$(BIN)/python -m firmware.docgen --check
	@$(BIN)/python -m tests.conformance --check

bench: $(STAMP)  ## measures latencies and throughput against yardsticks; prints ratios (WRITE=1: also docs/performance.md)
	@exec $(BIN)/python -m tests.bench $(if $(WRITE),--write)

image:  ## the flashable disk and its update bundle in build/image (ARCH=arm64: build/image-arm64; BOARD=name; more in docs/image.md)
	@$(PYTHON) image/build.py $(if $(ARCH),--arch $(ARCH)) $(if $(BOARD),--board $(BOARD))

image-reproducible:  ## builds the image's second stage once more and compares every byte
	@$(PYTHON) image/build.py $(if $(ARCH),--arch $(ARCH)) $(if $(BOARD),--board $(BOARD)) --reproduce

test-image: $(STAMP)  ## boots the image and checks what it promises (PARTS="smoke faults updates ...", without: smoke; ARCH)
	@exec $(BIN)/python -m tests.image --disk $(IMAGE)/disk.img $(PARTS)

test-image-long: $(STAMP)  ## all parts, every 1/64 of a bundle changed, CUTS=50 power cuts of each kind: some hours
	@EMS_CUTS=$(or $(CUTS),50) exec $(BIN)/python -m tests.image --disk $(IMAGE)/disk.img --all

flash:  ## the image onto a disk, verified: make flash DISK=/dev/sdX SEED=folder (INSTALLER=yes|erase: a stick that installs it)
	@test -n "$(DISK)" || { echo "flash: name the disk: make flash DISK=/dev/sdX"; exit 1; }
	@$(PYTHON) image/flash.py $(DISK) --image $(IMAGE)/disk.img $(if $(SEED),--seed $(SEED)) \
		$(if $(INSTALLER),--installer $(INSTALLER))

lock: $(STAMP)  ## renews the lock files from pyproject.toml
	@$(BIN)/python -m pip install --quiet pip-tools
	@$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-options \
		--output-file requirements.lock pyproject.toml
	@$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-options \
		--extra bench --extra dev --output-file requirements-dev.lock pyproject.toml

clean:  ## removes build/, caches and the virtual environment
	@rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
