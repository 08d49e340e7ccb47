# Everything here runs as it stands in a fresh checkout: each target first installs what it is missing (.ci/setup).

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo check test soak bench schemas man install uninstall clean

PYTHON := .venv/bin/python
# More than eight daemons at a time gain nothing and crowd a shared machine.
TEST_JOBS ?= -n auto --maxprocesses 8
TEST_ARGS ?=
DEMO_ARGS ?=
SOAK_ARGS ?=
BENCH_ARGS ?=
PREFIX ?= /usr/local
DESTDIR ?=
# Which qemu-storage-daemon the tests and the demo run; by default the one on PATH.
ifdef QORUM_QSD
export QORUM_QSD
endif

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; do \
	    printf '  make %-9s %s\n' "$$target" "$$text"; done

venv: ## make .venv, and install the system packages that are missing
	@.ci/setup test

demo: ## run the main job on a real set in a temporary directory (DEMO_ARGS=--keep leaves it)
	@.ci/setup run
	.venv/bin/qorumctl demo $(DEMO_ARGS)

check: ## ruff, mypy, drift of schemas and man pages, import direction
	@.ci/setup check
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	@rm -rf build/schemas && $(PYTHON) -m qorumctl.model.schema --write build/schemas
	@diff -ru schemas build/schemas || { echo "schemas/ does not fit the models: run 'make schemas'" >&2; exit 1; }
	@rm -rf build/man && $(PYTHON) -m qorumctl.cli.man --write build/man
	@diff -ru man build/man || { echo "man/ does not fit the program: run 'make man'" >&2; exit 1; }
	$(PYTHON) -m pytest -q tests/test_project.py

test: ## run the tests (QORUM_QSD=DAEMON chooses the daemon, TEST_ARGS='-k vote' the tests)
	@.ci/setup test
	QORUM_TEST_LIBBLKIO=$$(.ci/libblkio || true) $(PYTHON) -m pytest $(TEST_JOBS) $(TEST_ARGS)

soak: ## attack every promise for ten minutes (SOAK_ARGS='--minutes 60') and print the table of docs/safety.md
	@.ci/setup test
	$(PYTHON) -m tests.soak $(SOAK_ARGS)

bench: ## measure scrubs beside their peers, some minutes (BENCH_ARGS='--size 1GiB --rounds 3 --only scrub'); build/bench.json
	@.ci/setup test
	@QORUM_LIBBLKIO=$${QORUM_LIBBLKIO:-$$(.ci/libblkio || true)} $(PYTHON) -m tests.bench $(BENCH_ARGS)

schemas: ## write schemas/*.json anew from the models
	@.ci/setup run
	rm -f schemas/*.json
	$(PYTHON) -m qorumctl.model.schema --write schemas

man: ## write man/ anew from the commands and the models
	@.ci/setup run
	rm -f man/*
	$(PYTHON) -m qorumctl.cli.man --write man

install: ## install program, units, completions and schemas (PREFIX=/usr/local, DESTDIR=, see docs/operations.md)
	@.ci/setup run
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' contrib/install install

uninstall: ## remove what 'make install' has placed; sets stay
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' contrib/install uninstall

clean: ## remove .venv and everything that was built
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
