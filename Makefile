# Two commands do everything on a fresh machine: `make cook` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help cook test docs services cookbooks prepare hooks clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

cook: $(VENV)/installed  ## set up, fine-tune the embedded model (recipe sft), print where run and report are
	$(BIN)/kitchen cook sft

test: $(VENV)/developed  ## set up, then everything CI checks: sync, lint, types, pages, tests, recipes, coverage
	BIN=$(abspath $(BIN)) bash .ci/checks

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kitchen needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# --no-compile: writing bytecode for every package would take longer than downloading it
$(VENV)/installed: settings.ini setup.py constraints.txt | $(BIN)/python
	$(PIP) install -qq --no-compile -c constraints.txt -e .
	@touch $@

$(VENV)/developed: $(VENV)/installed
	$(PIP) install -qq --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/documented: $(VENV)/developed
	$(PIP) install -qq --no-compile -c constraints.txt -e '.[dev,docs]'
	@touch $@

docs: $(VENV)/documented  ## build the documentation site, docs/_build/html/index.html; DOCS="--help" lists its settings
	$(BIN)/python docs/build.py $(DOCS)

services: $(VENV)/developed  ## unmodified clients of services against `kitchen serve`, each in an environment of its own; prints a table
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/services/run.py
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/services/launch.py
	$(BIN)/python .ci/services.py $(foreach row,$(ROWS),'$(row)')

cookbooks: $(VENV)/developed  ## the notebooks of recipes_nb/cookbooks/, each with its service's SDK against `kitchen serve`
	$(BIN)/python .ci/services.py --cookbooks $(BOOKS)

prepare: $(VENV)/developed  ## after editing a page: export, clean, README
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_clean --fname recipes_nb
	$(BIN)/python .ci/packages.py
	$(BIN)/python .ci/readme.py

hooks: $(VENV)/developed  ## once for each clone: merge drivers for pages and generated files, checks before each commit
	git config merge.nbdev-merge.name "merge notebooks cell by cell"
	git config merge.nbdev-merge.driver "$(abspath $(BIN))/nbdev_merge %O %A %B %P"
	git config merge.kitchen-generated.name "keep our side; make prepare writes the file again"
	git config merge.kitchen-generated.driver true
	git config kitchen.bin "$(abspath $(BIN))"
	$(BIN)/pre-commit install

clean:  ## remove what was built (runs stay)
	rm -rf $(VENV) .venv-services .services docs/_build build dist *.egg-info .pytest_cache .ruff_cache
