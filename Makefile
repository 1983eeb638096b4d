# `make demo` and `make test` do all their own set-up on Debian and Ubuntu; only make and Python ≥ 3.11 must be there.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:

BIN := .venv/bin
STAMP := .venv/.installed
VIEW := build/view/bamboo
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
# The rooms, for mypy: what pyproject.toml lists at the top, without the configs; what lies below them comes along.
PACKAGES = $(shell sed -n 's/^    "\(bamboo\.[a-z_]*\)",$$/\1/p' pyproject.toml | grep -v '^bamboo\.configs')
PYTHON_CANDIDATES := python3 python3.13 python3.12 python3.11 python3.14
CHROMIUM_CANDIDATES := chromium chromium-browser google-chrome google-chrome-stable
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
APT := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
ARGS ?=

.PHONY: help venv demo test test-slow test-all lint wheel clean chromium slurm

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target what; do
	  printf '  make %-10s %s\n' "$$target" "$$what"
	done

venv: $(STAMP) $(VIEW)  ## the virtual environment .venv with everything installed (about 6 GB)

demo: venv  ## the whole job on handwritten digits; writes report.html
	$(BIN)/bamboo demo $(ARGS)

test: venv  ## the quick tests (ARGS='-k word' narrows them)
	none() { [ $$1 = 5 ]; }  # pytest's exit code where ARGS choose no test
	$(PYTEST) -q -m 'not slow and not alone' -n 2 --dist worksteal $(ARGS) || none $$?
	$(PYTEST) -q -m 'alone and not slow' $(ARGS) || none $$?

test-slow: venv chromium slurm  ## the slow tests: many processes, kills, a browser, a SLURM cluster on the loopback
	$(PYTEST) -q -m slow $(ARGS)

test-all: test test-slow  ## both

lint: venv  ## ruff and mypy
	$(BIN)/ruff check .
	MYPYPATH=$(dir $(VIEW)) $(BIN)/mypy $(addprefix -p ,$(PACKAGES))

wheel: venv  ## the wheel, in dist/
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

clean:  ## remove what the targets made, but for .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# A checkout that was moved or copied has a .venv that points to the old place: the stamp holds the place, and is made anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt
	@python=
	for candidate in $(PYTHON_CANDIDATES); do
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi
	done
	if [ -z "$$python" ]; then echo "no Python >= 3.11 found (looked for: $(PYTHON_CANDIDATES))" >&2; exit 1; fi
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
	  package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
	  if [ "$$(id -u)" != 0 ]; then echo "$$python lacks venv: run  sudo apt-get install $$package  and make again" >&2; exit 1; fi
	  echo "installing $$package"
	  apt-get update -qq
	  $(APT) "$$package" >/dev/null
	fi
	if [ "$$(cat $@ 2>/dev/null)" != "$(CURDIR)" ]; then rm -rf .venv; fi
	if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then "$$python" -m venv --clear .venv; fi
	echo "installing into .venv with $$("$$python" --version): about 6 GB, a few minutes ..."
	start=$$SECONDS
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt -e '.[hnsw]' 2>/dev/null || echo "hnswlib could not be built (it needs g++): InfoGrowth's own index is not tested" >&2
	echo "installed in $$((SECONDS - start)) s"
	echo "$(CURDIR)" > $@

# Type checkers run no import hooks: they see `bamboo` as a folder through this link. It never changes, hence order-only use.
$(VIEW):
	@mkdir -p $(dir $@)
	ln -sfn ../.. $@

chromium:
	@for candidate in $(CHROMIUM_CANDIDATES); do
	  if command -v "$$candidate" >/dev/null; then exit 0; fi
	done
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	  echo "installing chromium, which the test of the report opens"
	  { apt-get update -qq && $(APT) chromium >/dev/null; } || echo "chromium could not be installed: its test will be skipped" >&2
	else
	  echo "no chromium: its test will be skipped (sudo apt-get install chromium)" >&2
	fi

slurm:
	@if command -v slurmctld >/dev/null || [ -x /usr/sbin/slurmctld ]; then exit 0; fi
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	  echo "installing slurm, of which the tests start a cluster on the loopback"
	  { apt-get update -qq && $(APT) slurmctld slurmd slurm-client munge >/dev/null; } || echo "slurm could not be installed: its tests will be skipped" >&2
	else
	  echo "no slurm: its tests will be skipped (they need root, and slurmctld slurmd slurm-client munge)" >&2
	fi
