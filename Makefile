# make demo    builds fastnn, trains on real digits, races the kernels
# make test    builds fastnn, passes the tests
PYTHON ?= python3
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test lint format stubs aarch64 clean

demo: $(VENV)
	$(PIP) install '.[demo]'
	$(VENV)/bin/python examples/digits.py
	$(VENV)/bin/python bench/run.py --quick

# PYTEST_ARGS picks tests: make test PYTEST_ARGS='-k conv -m "not slow"'
test: $(VENV)
	$(PIP) install '.[test]'
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

$(VENV):
	$(PYTHON) -m venv $@

# ------------------------------------------------------------------------------ for developers

# What '.[dev]' names, without building fastnn.
DEV_TOOLS = $(shell $(VENV)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
  print(*(repr(x) for x in p['dependencies'] + p['optional-dependencies']['dev']))")
CXX_FILES = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

lint: $(VENV)
	$(PIP) install --quiet $(DEV_TOOLS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)
	$(PIP) install --quiet $(DEV_TOOLS)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

# The types of the extension, from the signatures it carries.
stubs: $(VENV)
	$(PIP) install --quiet .
	$(VENV)/bin/python cmake/generate_stubs.py python/fastnn/_C.pyi

# Compiles all C++ but the Python bindings for 64-bit ARM; links and runs nothing.
AARCH64_CXX ?= aarch64-linux-gnu-g++
AARCH64_FLAGS = -std=c++17 -O1 -Wall -Wextra -Wno-init-list-lifetime -Icsrc \
  -DFASTNN_BUILT_LEVEL='"baseline"' -DFASTNN_LEVEL=baseline
AARCH64_SOURCES = $(shell find csrc -name '*.cpp' -not -path 'csrc/python/*' -not -path csrc/core/cuda.cpp -not -name '*_amx*')
AARCH64_OBJECTS = $(AARCH64_SOURCES:csrc/%.cpp=build/aarch64/%.o)

aarch64: $(AARCH64_OBJECTS)
	@echo "aarch64: $(words $^) files compile"

build/aarch64/%.o: csrc/%.cpp
	@mkdir -p $(@D)
	$(AARCH64_CXX) $(AARCH64_FLAGS) -MMD -c $< -o $@

-include $(AARCH64_OBJECTS:.o=.d)

clean:
	rm -rf build dist $(VENV) .venv-*
