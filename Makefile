# Everything runs in an own virtual environment, .venv. Another Python: make install PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo
FUZZ := 5000

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: install demo test coverage fuzz mutate audit check docs help

install: $(INSTALLED) ## make .venv and install the project and its tools in it, in the tested versions

# The stamp is newer than what it was made from: a second call installs nothing.
$(INSTALLED): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no '$(PYTHON)' found; name a Python >= 3.11: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), the project needs Python >= 3.11;" \
	    "name one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

demo: $(INSTALLED) ## train both branches on a made sample, export, label pictures, score them: runs/demo/score.json
	$(BIN)/python cli/data.py sample --out $(DEMO)/sample
	$(BIN)/python cli/train.py --task all --data-dir $(DEMO)/sample/train --model-dir $(DEMO) --config examples/demo.yaml
	$(BIN)/python export/to_onnx.py --model-dir $(DEMO) --out $(DEMO)/onnx
	$(BIN)/python cli/infer.py --model $(DEMO)/onnx/maskcls.onnx --images $(DEMO)/sample/eval/images --info $(DEMO)/sample/eval/info.csv --out $(DEMO)/output.csv
	$(BIN)/python cli/evaluate.py --gt $(DEMO)/sample/eval/gt.csv --pred $(DEMO)/output.csv --json $(DEMO)/score.json
	@echo "demo: score in $(DEMO)/score.json, labels in $(DEMO)/output.csv, ONNX files in $(DEMO)/onnx/, runs in $(DEMO)/mask_gender/ and $(DEMO)/age/"

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

coverage: $(INSTALLED) ## run the tests and fail where less than 90 % of the branches are run
	$(BIN)/python -m pytest -n 2 --dist loadgroup --cov

fuzz: $(INSTALLED) ## feed damaged files to every reader, FUZZ=5000 of them to each
	FUZZ=$(FUZZ) $(BIN)/python -m pytest -n 2 tests/test_fuzz.py

mutate: $(INSTALLED) ## change the code that scores in small ways and fail where the tests notice less than 85 %
	rm -rf mutants
	$(BIN)/mutmut run
	$(BIN)/mutmut export-cicd-stats
	@$(BIN)/python -c 'import json; s = json.load(open("mutants/mutmut-cicd-stats.json")); \
	  share = (s["killed"] + s["timeout"]) / (s["total"] - s["skipped"]); \
	  print(f"noticed: {share:.1%}; the others: $(BIN)/mutmut results"); raise SystemExit(share < 0.85)'

audit: $(INSTALLED) ## ask the vulnerability database about every installed package (needs the network)
	$(BIN)/pip-audit --local --skip-editable

check: $(INSTALLED) ## format, lint and types, as in pre-commit
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: $(INSTALLED) ## build the documentation, without a warning: site/index.html
	$(BIN)/python -m mkdocs build --strict

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
