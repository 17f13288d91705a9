# make demo    builds fastnn, trains on real digits, races the kernels
# make test    builds fastnn, passes the tests
PYTHON ?= python3
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test lint format stubs aarch64 sanitize cuda-emulated cuda-check clean

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

# What '.[extra]' names, without building fastnn.
requirements = $(shell $(VENV)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
  print(*(repr(x) for x in p['dependencies'] + p['optional-dependencies']['$(1)']))")
CXX_FILES = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

lint: $(VENV)
	$(PIP) install --quiet $(call requirements,dev)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)
	$(PIP) install --quiet $(call requirements,dev)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

# The types of the extension, from the signatures it carries.
stubs: $(VENV)
	$(PIP) install --quiet .
	$(VENV)/bin/python cmake/generate_stubs.py python/fastnn/_C.pyi

# Compiles all C++ but the Python bindings for 64-bit ARM; links and runs nothing.
AARCH64_CXX ?= aarch64-linux-gnu-g++
AARCH64_FLAGS = -std=c++17 -O0 -Wall -Wextra -Wno-init-list-lifetime -Icsrc \
  -DFASTNN_BUILT_LEVEL='"baseline"' -DFASTNN_LEVEL=baseline
CUDA_SOURCES = $(patsubst %,csrc/core/%.cpp,cuda cuda_found cuda_graph cuda_launch cuda_memory cuda_stream)
AARCH64_SOURCES = $(shell find csrc -name '*.cpp' -not -path 'csrc/python/*' $(patsubst %,-not -path %,$(CUDA_SOURCES)) -not -name '*_amx*')
AARCH64_OBJECTS = $(AARCH64_SOURCES:csrc/%.cpp=build/aarch64/%.o)

aarch64: $(AARCH64_OBJECTS)
	@echo "aarch64: $(words $^) files compile"

build/aarch64/%.o: csrc/%.cpp
	@mkdir -p $(@D)
	$(AARCH64_CXX) $(AARCH64_FLAGS) -MMD -c $< -o $@

-include $(AARCH64_OBJECTS:.o=.d)

# Builds the extension in folder $(1) with options $(2), beside a copy of the Python sources in $(1)/package.
define build_package
	$(VENV)/bin/cmake -S . -B $(1) $(2) -DFASTNN_STRIP=OFF -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python \
	  -Dpybind11_DIR=$$($(VENV)/bin/python -m pybind11 --cmakedir) >/dev/null
	$(VENV)/bin/cmake --build $(1) --parallel $$(nproc)
	rm -rf $(1)/package && mkdir $(1)/package
	cp -R python/fastnn $(1)/package && rm -f $(1)/package/fastnn/_C*.so
	cp $(1)/_C*.so $(1)/package/fastnn
endef

# The kernels' tests under the address and undefined-behaviour sanitizers, at the best CPU level of this machine.
# Python is not built with them, so they come first into the process; its own leaks at exit are not reported.
# SANITIZE_TESTS picks others: make sanitize SANITIZE_TESTS='tests/test_ops.py tests/test_autograd.py'
SANITIZE = build/sanitize
SANITIZE_TESTS ?= tests/test_ops.py tests/test_conv.py tests/test_matmul.py tests/test_fused.py -k 'conv or pool or matmul or linear or fused or norm or attention or recurrent'
BEST_LEVELS = $(or $(shell grep -qw amx_bf16 /proc/cpuinfo && echo 'avx512;amx'),$(shell grep -qw avx512vl \
  /proc/cpuinfo && echo avx512),$(shell grep -qw avx2 /proc/cpuinfo && echo avx2),baseline)

sanitize: $(VENV)
	$(PIP) install --quiet $(call requirements,test)
	$(call build_package,$(SANITIZE),-DFASTNN_SANITIZE=ON -DFASTNN_CUDA=OFF -DFASTNN_CPU_LEVELS='$(BEST_LEVELS)')
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZE)/package \
	  $(VENV)/bin/python -m pytest -q -n $$(nproc) --capture=sys -m "not slow and not torch" $(SANITIZE_TESTS)

# The CUDA kernels compiled for the CPU by tests/emulation, and the tests of CUDA on them: no nvcc, no GPU.
# EMULATED_TESTS picks others: make cuda-emulated EMULATED_TESTS='tests/test_cuda_ops.py -k softmax'
EMULATED = build/emulated
EMULATED_TESTS ?= tests/test_cuda*.py tests/test_emulation.py

cuda-emulated: $(VENV)
	$(PIP) install --quiet $(call requirements,test)
	$(call build_package,$(EMULATED),-DFASTNN_CUDA=EMULATED -DFASTNN_CPU_LEVELS=baseline)
	PYTHONPATH=$(EMULATED)/package FASTNN_REQUIRE_CUDA=1 \
	  $(VENV)/bin/python -m pytest -q -n $$(nproc) $(EMULATED_TESTS)

# The CUDA kernels as nvcc makes them, without a GPU: no spills, no serialised wgmma, tensor cores where they must be.
CUDA_CHECK = build/cuda-check

cuda-check: $(VENV)
	$(PIP) install --quiet 'cmake>=3.24' 'pybind11>=3.0' 'nvidia-cuda-cuobjdump>=13' 'nvidia-cuda-nvdisasm>=13'
	$(VENV)/bin/cmake -S . -B $(CUDA_CHECK) -DFASTNN_CUDA=ON -DFASTNN_CPU_LEVELS=baseline \
	  -DPython_EXECUTABLE=$(abspath $(VENV))/bin/python \
	  -Dpybind11_DIR=$$($(VENV)/bin/python -m pybind11 --cmakedir) >/dev/null
	$(VENV)/bin/cmake --build $(CUDA_CHECK) --target cuda_base cuda_sm90 --parallel $$(nproc)
	$(VENV)/bin/python cmake/check_cuda.py $(CUDA_CHECK)

clean:
	rm -rf build dist $(VENV) .venv-*
