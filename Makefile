# Thin: each target makes .venv first if it is missing or out of date, then runs one or two commands.
PYTHON ?= python3
PORT ?= 5000
VENV := .venv
READY := $(VENV)/.ready
DEMO := digits-mlp digits-cnn

# What DVC did, without a line for each stage that was done before; a failed stage still fails.
CHANGES := awk "!/didn't change, skipping/ { print; fflush() }"
SHELL := bash
.SHELLFLAGS := -o pipefail -c

# The hints of `ferry results` are for the terminal, where .venv may not be active.
CALLERS_PATH := $(PATH)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# One place for every version, of the packages that build the wheel too.
export PIP_CONSTRAINT := $(CURDIR)/requirements.lock
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Neither reports its use to anybody, unless you say otherwise.
export MLFLOW_DISABLE_TELEMETRY ?= true
export DVC_NO_ANALYTICS ?= 1

.PHONY: demo test lint format ui bench torture audit release clean help

help:
	@echo "make demo    train, export, prove, time and bundle the embedded experiments"
	@echo "make test    run the tests"
	@echo "make lint    ruff and mypy --strict"
	@echo "make bench   measure what ferry aims at (needs mnist and cifar10)"
	@echo "make torture attack everything: kills, hostile files and models, rot (hours; goes on)"
	@echo "make audit   hold the locked versions against an advisory database (needs the network)"
	@echo "make release build sdist, wheel, bill of materials and sums of the last commit in dist/"
	@echo "make ui      browse the runs in MLflow on http://127.0.0.1:$(PORT)"

demo: $(READY)
	@PYTHONUNBUFFERED=1 dvc repro $(DEMO:%=short@%) | $(CHANGES)
	@dvc repro --single-item report | $(CHANGES)
	@PATH='$(CALLERS_PATH)' $(VENV)/bin/ferry results $(DEMO)

test: $(READY)
	python -m pytest --numprocesses 2 --dist worksteal

lint: $(READY)
	ruff format --check .
	ruff check .
	mypy

format: $(READY)
	ruff format .
	ruff check --fix .

ui: $(READY)
	ferry ui --port $(PORT)

bench: $(READY)
	python benchmarks/startup.py
	python benchmarks/first_epoch.py
	python benchmarks/trainer.py
	python benchmarks/seeds.py mnist-tiny
	python benchmarks/seeds.py cifar10-cnn
	python benchmarks/seeds.py cifar10-resnet8
	python benchmarks/benching.py
	python benchmarks/folding.py
	python benchmarks/places.py mnist-tiny cifar10-resnet8 rt-lstm
	python benchmarks/web.py
	python benchmarks/microcontroller.py mnist-tiny cifar10-resnet8
	python benchmarks/scenarios.py
	python benchmarks/tuner.py
	python benchmarks/predicting.py
	python benchmarks/registry_kills.py
	python benchmarks/deploy_kills.py
	python benchmarks/first_trainings.py
	python benchmarks/tracking_faults.py
	python benchmarks/aims.py

audit:
	@$(PYTHON) .ci/audit.py

release: $(READY)
	@python .ci/release.py

torture: $(READY)
	python benchmarks/torture

clean:
	rm -rf data models bundles reports .dvc/cache .dvc/tmp

$(READY): pyproject.toml requirements.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	python -m pip install --editable '.[pipeline,dev]'
# Its schema alone, for a test: the whole asks for an older protobuf than ONNX here.
	python -m pip install --no-deps tritonclient
	touch $(READY)
