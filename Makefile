# Every target sets itself up: a fresh machine needs Python 3.11 or newer and make, nothing else.
# make PYTHON=python3.12 TARGET chooses the interpreter; make test ARGS="-k solver" hands arguments on.

RUN := .venv/bin/python
WORKERS ?= logical
ARGS ?=

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test docs lint format types notebooks bench robustness papers clean distclean demo-ready dev-ready bench-ready

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /    make \1: /p' Makefile

demo: demo-ready  ## train a diffusion model and a flow on real digits, compare them, write runs/demo/report.html
	$(RUN) -m genmatch.demo $(ARGS)

test: dev-ready  ## run the tests; the slow ones too where CI=true or ARGS=--runslow
	$(RUN) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(ARGS)

docs: dev-ready  ## build docs/_build/html/index.html; a warning is an error
	$(RUN) -m sphinx -W --keep-going -n -q -b html docs docs/_build/html $(ARGS)

lint: dev-ready  ## check style and formatting
	$(RUN) -m ruff check --output-format=concise .
	$(RUN) -m ruff format --check .

format: dev-ready  ## repair what lint can repair
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

types: dev-ready  ## check the type annotations
	$(RUN) -m pyright

notebooks: dev-ready  ## execute examples/*.ipynb; ARGS=--inplace stores the outputs
	@set -e; for notebook in examples/*.ipynb; do \
	    test -e "$$notebook" || continue; \
	    echo "$$notebook"; \
	    PYTHONWARNINGS=ignore::Warning:tqdm.auto $(RUN) -m jupyter execute --kernel_name=python3 --timeout=1200 $(ARGS) "$$notebook"; \
	done

bench: bench-ready  ## compare with other libraries and save the tables; ARGS=--quick, ARGS=--list
	$(RUN) benchmarks $(ARGS)

robustness: dev-ready  ## run the experiments of docs/robustness.md
	$(RUN) -m benchmarks.robustness $(ARGS)

papers: dev-ready  ## run the studies of docs/papers; ARGS="efficiency --size smoke ..."
	$(RUN) -m benchmarks.papers $(ARGS)

clean:  ## remove what was built
	rm -rf build dist docs/_build docs/api/generated .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove what was built and .venv
	rm -rf .venv

demo-ready dev-ready bench-ready: %-ready:
	@sh .ci/environment $*
