# Two commands do everything: `make book` and `make test`. Each sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What to run: make book N="10 30" SEEDS="0 1" PROFILE=smoke JOBS=1
PROFILE ?= full
JOBS ?=
N ?=
SEEDS ?=
EXECUTOR ?= local
GRID := --profile $(PROFILE) --executor $(EXECUTOR) $(if $(N),--N $(N)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS))

# uv ignores pip's settings. Where wheels are found locally it is told so; elsewhere it picks the torch build that fits the
# machine (a CPU build where there is no GPU) instead of several gigabytes of CUDA.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
UV_TORCH := $(if $(UV_FIND_LINKS),,--torch-backend=auto)
# Without bytecode every kernel would compile torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book pdf site.zip check test test-faults browser lab bench lint mend audit lock reference clean help

help:  ## Show this list
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo
	@echo '  make book N="10 30" SEEDS="0 1"    other numbers of tilts, several seeds'
	@echo '  make book PROFILE=smoke            a first look in a few minutes; its figures mean nothing'

# Scripts of an environment, and the library in it, name the folder that it was made in. One that was moved or copied along is
# made anew, as a whole: what was copied by hard links is the original's, too.
MOVED := $(shell grep -s '^command = ' $(VENV)/pyvenv.cfg | grep -vF ' $(CURDIR)/$(VENV)')
.PHONY: moved
$(VENV)/.ready: requirements.txt pyproject.toml $(if $(MOVED),moved)
	@$(if $(MOVED),echo "$(VENV) was made in another folder and moved or copied here: making it anew"; rm -rf $(VENV),:)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import platform as p, sys; v = p.mac_ver()[0]; sys.exit(bool(v) and (p.machine() != "arm64" or int(v.split(".")[0]) < 14))' || \
	  { echo "The locked torch has no wheel for Intel Macs and macOS before 14: use another machine, or the library alone (pip install -e .)"; exit 1; }
	@echo "Installing the locked dependencies into $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@$(UV) $(UV_TORCH) -r requirements.txt
	@touch $@

book: $(VENV)/.ready  ## Run what is out of date, then build the book
	@$(BIN)/python book/build.py $(GRID)

# What was built last is brought up to date, unless something else is asked for.
ASKED := $(strip $(foreach name,PROFILE N SEEDS,$(filter-out file,$(origin $(name)))))
pdf: $(VENV)/.ready  ## The book that was built last in one file, printed by Chromium
	@$(BIN)/python book/build.py $(if $(ASKED),,--last) $(GRID)
	@$(BIN)/python book/publish.py pdf

site.zip: pdf  ## Site and PDF in one archive, for readers who build nothing
	@$(BIN)/python book/publish.py zip

check: lint  ## Style, types and the tests of the method: what to run while you work
	@$(BIN)/python -m pytest -n 2 tests/method tests/test_architecture.py

test: $(VENV)/.ready  ## Run all tests, a small batch and a build of the book among them
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# Two workers by default: each runs processes of its own.
WORKERS ?= 2

# Root needs no sudo, and a container often has none.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
browser:  ## Install Debian's Chromium, in which the tests read the book; without it they skip that
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null || \
	  { $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null; }

lab: $(VENV)/.ready  ## Open the notebooks in JupyterLab, or one: CHAPTER=s3_2_algorithm
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks$(if $(CHAPTER),/$(CHAPTER).ipynb)

# glibc gives what is freed back to the system, or keeps it, as the heap happens to lie; what is given back has to be fetched
# again at every step. Told to keep it, two runs agree.
bench: export MALLOC_TRIM_THRESHOLD_ := 268435456
bench: export MALLOC_MMAP_THRESHOLD_ := 33554432
# What to measure: make bench ONLY="sampling training"; RECORD=1 writes the committed record, RESUME=1 goes on with a run
bench: $(VENV)/.ready  ## Measure speed in ratios, and compare with the committed record
	@OMP_NUM_THREADS=1 KINETO_LOG_LEVEL=99 $(BIN)/python benchmarks/bench.py $(if $(ONLY),--only $(ONLY)) $(if $(RECORD),--record) $(if $(RESUME),--resume)

test-faults: $(VENV)/.ready  ## Kill every kind of process at every stage: nothing is lost (half an hour or more)
	@$(BIN)/python -m pytest -m faults -v

audit: $(VENV)/.ready  ## Look for known vulnerabilities in the lock, and for licences that do not fit
	@mkdir -p _build && $(BIN)/python tests/support/licences.py >_build/licences.txt && echo "The licences fit: _build/licences.txt"
	@# An old release that is known to be vulnerable tells whether the service knows anything: pip-audit only skips what it can't find.
	@$(BIN)/python -c 'import json, urllib.request as u; json.load(u.urlopen("https://pypi.org/pypi/jinja2/2.4.1/json"))["vulnerabilities"][0]' \
	  2>/dev/null || { echo "pypi.org tells no vulnerabilities here (a mirror, or no network): none were looked for."; exit 1; }
	@grep -v '^-e' requirements.txt >_build/audit.txt
	@$(BIN)/uv tool run --quiet --from pip-audit==2.10.1 pip-audit --no-deps --disable-pip -r _build/audit.txt

lint: $(VENV)/.ready  ## Check style, types and that the notebooks' pairs agree
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python tests/support/pairs.py

mend: $(VENV)/.ready  ## Mend what a program can: style, format and the notebooks' pairs
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet . && $(BIN)/python tests/support/pairs.py --mend

reference: $(VENV)/.ready  ## Compute the committed reference grids again: about five hours on 2 cores
	@$(BIN)/python -m itlib.reproduce --seeds 0 1 2 3 4 5 6 7 8 9 --records-only --out book/reference/paper
	@$(BIN)/python -m itlib.reproduce --grid choices --N 20 --seeds 0 1 --out book/reference/choices
	@$(BIN)/python -m itlib.reproduce --grid tuning --seeds 100 --out book/reference/tuning
	@$(BIN)/python -m itlib.reproduce --grid rivals --seeds 0 1 2 --out book/reference/rivals
	@$(BIN)/python -m itlib.reproduce --grid untuned --only value_skip bounded_skip tilting_skip --seeds $$(seq 0 19) --out book/reference/untuned
	@$(BIN)/python -m itlib.reproduce --grid effective_share --out book/reference/effective_share
	@$(BIN)/python -m itlib.reproduce --grid scaling --seeds 0 1 2 --out book/reference/scaling
	@$(BIN)/python -m itlib.reproduce --grid error_budget --seeds 0 1 2 --out book/reference/error_budget
	@$(BIN)/python -m itlib.reproduce --grid ablation --seeds 0 1 2 --out book/reference/ablation
	@$(BIN)/python -m itlib.reproduce --grid ablation --only '*_main_*' '*_base_exact' 'tails_*' --seeds 3 4 --out book/reference/ablation
	@$(BIN)/python -m itlib.reproduce --grid digits_base --out book/reference/digits
	@$(BIN)/python -m itlib.reproduce --grid digits_truth --seeds 0 1 2 --out book/reference/digits
	@$(BIN)/python -m itlib.reproduce --grid digits --seeds 0 1 2 --out book/reference/digits
	@$(BIN)/python -m itlib.reproduce --grid molecules_solubility --out book/reference/molecules
	@$(BIN)/python -m itlib.reproduce --grid molecules_base --out book/reference/molecules
	@$(BIN)/python -m itlib.reproduce --grid molecules_truth --seeds 0 1 2 3 --out book/reference/molecules
	@$(BIN)/python -m itlib.reproduce --grid molecules_data --out book/reference/molecules
	@$(BIN)/python -m itlib.reproduce --grid molecules --seeds 1 2 3 --out book/reference/molecules
	@cp book/reference/paper/N100_seed0.safetensors book/reference/hero.safetensors
	@$(BIN)/python -m itlib.reproduce --grid landing --seeds 0 1 2 --records-only --out book/reference/landing
	@$(BIN)/python book/live_picture.py
	@$(BIN)/python book/showcase.py

lock: $(VENV)/.ready  ## Write requirements.txt anew from pyproject.toml
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --all-extras --no-header --no-emit-find-links --no-annotate pyproject.toml -o _build/lock.txt
	@{ echo "# The full lock: every extra of pyproject.toml, for Python >= 3.11. Regenerate with: make lock"; \
	   echo "# torch's own CUDA packages are left out on purpose: the installer adds what the machine needs."; \
	   echo "torch==2.13.0"; grep -vE '^(torch|nvidia-.*|cuda-.*|triton)==' _build/lock.txt; echo "-e ."; } > requirements.txt

clean:  ## Remove what was built: pages, runs, checkpoints (the reference records and .venv stay)
	@rm -rf _build book/runs book/pages
