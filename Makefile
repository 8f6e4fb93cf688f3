# Everything here needs python3 and make; the first target that runs builds .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Three workers on two cores: tests wait for the processes and servers that they start for a fifth of the time.
WORKERS := --numprocesses $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 3 / 2) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help env demo test test-all test-gpu lint docs bench clean

help:
	@echo "make demo      a ViT on digits, a search for a GLiT, a Transformer on numbers; prints the report's path"
	@echo "make test      the fast tests (make test-all: every test)"
	@echo "make test-gpu  what only a CUDA device can show, and its training speed; five minutes"
	@echo "make lint      style, types, and who may import whom"
	@echo "make docs      this documentation as a site, in site/"
	@echo "make bench     this project beside what it is compared with, as ratios"
	@echo "make env       only build .venv          make clean     remove it and every run"

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	@echo "Installing what glocal needs into $(VENV) (about 6 GB: PyTorch comes with its CUDA libraries) ..."
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --group dev --constraint constraints.txt --editable .
	@touch $(READY)

$(VENV)/.docs: pyproject.toml constraints.txt
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --group docs --constraint constraints.txt
	@touch $(VENV)/.docs

demo: $(READY)
	@$(BIN)/python examples/demo.py

test: $(READY)
	@$(BIN)/python -m pytest $(WORKERS)

test-all: $(READY)
	@$(BIN)/python -m pytest $(WORKERS) -m ""

test-gpu: $(READY)
	@$(BIN)/python -m pytest tests/gpu -m gpu -rs -s --durations 5
	@$(BIN)/python benchmarks/gpu.py --minutes 3

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "file://$(CURDIR)/site/index.html"

bench: $(READY)
	@failed=; for part in ops vision search translation language; do $(BIN)/python benchmarks/$$part.py || failed="$$failed $$part"; done; \
	test -z "$$failed" || { echo "these benchmarks failed:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) runs site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
