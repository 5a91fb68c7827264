# Every target sets up what it needs: a virtual environment in .venv, with the exact versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install serve test test-slow test-docker test-ray test-oldest test-python chaos pictures lint format \
        bench bench-http bench-front-end bench-auto bench-ray gpu-day simulate ablations beyond coverage-models docs

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: pyproject.toml setup.py constraints.txt $(wildcard tome_core/backends/cpu/*.cpp tome_core/backends/cpu/*.h server/imaging/*.cpp)
	@echo 'Setting up .venv; this takes a minute or more, and longer where torch has to be downloaded.'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev --editable '.[audio,video]'
	touch $@

install: .venv/installed  ## set up .venv

serve: install  ## start the server on port 8000 with the bundled model
	$(BIN)/tome-serve serve

test: lint  ## lint, types and the fast tests
	$(BIN)/pytest

test-slow: install  ## the tests that take minutes
	$(BIN)/pytest -m slow

test-docker: install  ## build the image and bring the containers up, on a machine with a Docker engine
	$(BIN)/pytest -m docker tests/docker

# The oldest versions that pyproject.toml allows, of what it names itself; the compiled kernels are those of .venv.
.venv-oldest/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip install --python .venv-oldest --resolution lowest-direct --extra audio --requirements pyproject.toml
	.venv-oldest/bin/uv pip install --python .venv-oldest --constraint constraints.txt pytest hypothesis httpx
	touch $@

test-oldest: install .venv-oldest/installed  ## the tests of core and engine with the oldest versions allowed
	.venv-oldest/bin/python -m pytest tests/tome_core tests/server/engine

test-python:  ## the fast tests with another Python: PYTHON=3.12; ARGS="-m slow" for others
	@python3 -m tests.other_python $(PYTHON) $(ARGS)

chaos: install  ## long: tries to break servers of 1 and 3 API processes, into docs/reliability.md; ARGS="--only sigterm --times 5"
	$(BIN)/python -m tests.chaos $(ARGS)

pictures: install  ## thousands of generated pictures: server, commands, and timm with Pillow; ARGS="--count 9000 --seed 5"
	$(BIN)/python -m tests.pictures $(ARGS)

.venv/ray: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --group ray
	touch $@

test-ray: .venv/ray  ## the server under Ray Serve: answers, lost replicas, rolling restart
	$(BIN)/pytest -m ray tests/ray

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## rewrite the code as ruff formats it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## write docs/configuration.md from the settings
	$(BIN)/python -m tests.docs.configuration

coverage-models: install  ## check every ViT of timm, and write docs/models.md
	$(BIN)/python -W ignore -m tests.tome_core.registry

.venv/peers: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --group bench
	touch $@

bench: .venv/peers  ## the forward pass against its peers; ARGS="--quick" or "--tome PATH", ARGS="--help" for more
	$(BIN)/python -m benchmarks $(ARGS)

bench-http: install  ## images/s over HTTP, by wrk; ARGS="--help" says how to name a peer
	$(BIN)/python -m benchmarks.http $(ARGS)

bench-front-end: .venv/peers  ## CPU time a request of HTTP and decoding, beside mosec and LitServe; ARGS="--help" for more
	$(BIN)/python -m benchmarks.front_end $(ARGS)

bench-auto: install  ## r=auto under an open load on a real server; ARGS="--help" for more
	$(BIN)/python -m benchmarks.auto $(ARGS)

gpu-day: install  ## all GPU tests and benchmarks, in seven minutes; ARGS="--dry" tries it on the CPU, ARGS="--help" for more
	$(BIN)/python -m benchmarks.gpu_day $(ARGS)

simulate: install  ## the scheduler under load on a simulated device
	$(BIN)/python -m benchmarks.simulation $(ARGS)

bench-ray: .venv/ray  ## images/s under Ray Serve, of one replica and of two; ARGS="--help" for more
	$(BIN)/python -m benchmarks.ray_serve $(ARGS)

ablations: install  ## the paper's ablation tables on the bundled model, into docs/ablations.md; ARGS=--twin: on its twin
	$(BIN)/python -m research.ablations $(ARGS)

beyond: install  ## ideas beyond the rule "pairs", on the bundled model or another, into docs/beyond.md
	$(BIN)/python -m research.beyond $(ARGS)
