# make test, make check: what CI runs. make demo, make bench: see the README. ARGS are passed on.
PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := test
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test test-sdks wheel check bench format

# $(call find_python,3.N): the first python3.N that really runs (a pyenv shim may exist and not run).
find_python = $(shell for p in "$$(command -v python$(1))" "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(1)*/bin/python; do \
	"$$p" -c 'import sys, venv, ssl; sys.exit("%d.%d" % sys.version_info[:2] != "$(1)")' 2>/dev/null && echo "$$p" && break; \
	done)
# The versions newer than the one of .venv, and those of them found on this machine.
wanted = $(shell .venv/bin/python -c 'import sys; print(*("3.%d" % n for n in (12, 13, 14) if n > sys.version_info[1]))')
found = $(foreach v,$(WANTED),$(if $(call find_python,$(v)),$(v)))

demo: .venv/.installed
	.venv/bin/python -m pacer.cli.demo $(ARGS)

test: .venv/.installed
	$(eval WANTED := $(wanted))
	$(eval NEWER := $(found))
	@echo "== tests on: $$(.venv/bin/python -V)"
	@echo "==   and without model and processes on: $(or $(foreach v,$(NEWER),$(v) ($(call find_python,$(v)))),no newer one)"
	@echo "==   not on this machine: $(or $(filter-out $(NEWER),$(WANTED)),none)"
	.venv/bin/python -m pytest -n 2 --dist loadgroup $(ARGS)
	@set -e; for v in $(NEWER); do $(MAKE) --no-print-directory test-$$v; done
	@$(MAKE) --no-print-directory test-sdks ARGS=
	@$(MAKE) --no-print-directory wheel

# One newer Python. The model and what happens between processes are the same on each, so they are seen once, on .venv.
test-%: .venv-%/.installed
	@echo "== tests on: $$(.venv-$*/bin/python -V)"
	.venv-$*/bin/python -m pytest -n 2 -m 'not model and not processes' $(ARGS)

# The newest SDKs and frameworks. Named, because pytest leaves this folder out by itself; ARGS choose among it only here.
# Frameworks now and then leave an event loop of their own open, with all in it, to be found in any test or after the
# last one; that we leave nothing open is held by the other tests.
test-sdks: .venv-sdks/.installed
	@echo "== tests of the SDKs on: $$(.venv-sdks/bin/python -V)"
	.venv-sdks/bin/python -m pytest -W 'ignore:unclosed :ResourceWarning' tests/sdks $(ARGS)

# The wheel as a stranger gets it: no extras, nothing of this directory on the path.
wheel: .venv/.installed
	@echo "== wheel"
	rm -rf .venv/dist .venv/wheel-venv
	.venv/bin/python -m build --wheel --outdir .venv/dist .
	.venv/bin/python -m venv .venv/wheel-venv
	.venv/wheel-venv/bin/python -m pip install -q .venv/dist/*.whl
	cd .venv/wheel-venv && bin/python -I -c "$$WHEEL_CHECK"

define WHEEL_CHECK
import importlib.metadata, pathlib, sys
import pacer, transports
for package in pacer, transports:
    home = pathlib.Path(package.__file__).parent
    assert home.is_relative_to(sys.prefix), f"{home} is not the installed one"
    assert (home / "py.typed").is_file(), f"{home} has no py.typed"
print("token-pacer", importlib.metadata.version("token-pacer"), "imports without extras; both packages are typed")
endef
export WHEEL_CHECK

check: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -q tests/test_docs.py

bench: .venv/.installed
	.venv/bin/python -m pip install -q -e '.[bench]'
	.venv/bin/python -m benchmarks $(ARGS)

format: .venv/.installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -e '.[dev]'
	@touch $@

.venv-sdks/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-sdks
	.venv-sdks/bin/python -m pip install -q -e '.[sdks]'
	@touch $@

.PRECIOUS: .venv-%/.installed
.venv-%/.installed: pyproject.toml
	$(call find_python,$*) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q -e '.[dev]'
	@touch $@
