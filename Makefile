# Two commands on a fresh machine: make demo, make test. Python 3.11 or later is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two processes that spin on the same two cores slow each other a hundredfold; libgomp reads this when it is loaded.
export GOMP_SPINCOUNT ?= 5000

.PHONY: demo test lint faults bench clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cluster,data,hub,stores,train,test]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m trainer.demo

# A file of tests goes to one of so many processes as a whole; where a test fails, look at it with pytest alone.
WORKERS ?= 2
test: $(STAMP) lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The faults that take long, and 30 kills at random moments: tests/faults/TABLE.md has the result.
faults: $(STAMP)
	$(BIN)/python -m pytest -m faults --timeout 300
	$(BIN)/python -m tests.faults.campaign

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-bench.txt
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) runs datasets mlruns mlartifacts mlflow.db bench.json
