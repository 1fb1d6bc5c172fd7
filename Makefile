# make search: the quickest way to see it work. Every target installs into .venv first where that is missing.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install search test test-slow lint bench bench-costs gpu coverage

install: $(INSTALLED)

# Anew only when the dependencies may have changed; the package itself is installed in place.
$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

search: $(INSTALLED)
	$(BIN)/python search.py model=mobilenet_v2 budget=0.7

# A process for each core, and in each one thread: they would only get into each other's way.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet --capture=no tests/test_structure.py

bench: $(INSTALLED)
	$(BIN)/python benchmarks/speed.py

bench-costs: $(INSTALLED)
	$(BIN)/python benchmarks/costs.py

# make gpu DATA=<train/ and test/> WEIGHTS=<folder of resnet20*.th, resnet56*.th>
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py $(if $(DATA),--data "$(DATA)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

coverage: $(INSTALLED)
	$(BIN)/python -m pip install --editable '.[coverage]'
	$(BIN)/python benchmarks/coverage.py
