#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one and may have no network: builds with the tools
# that are installed (pybind11, scikit-build-core, cmake, ninja), tests the CUDA kernels against the
# CPU's, and times them. What it prints also goes to RESULTS.
#
#   bench/gpu_check.sh [RESULTS]        default: bench/results
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
results=${1:-bench/results}
mkdir -p "$results"
exec > >(tee "$results/gpu_check.log") 2>&1

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
"$python" -m pip install --no-build-isolation --no-deps -C cmake.define.FASTNN_CUDA=ON .
"$python" -c "import fastnn; fastnn.show_config()"
# Without pyproject.toml's settings: they ask for plugins that such a machine may lack.
FASTNN_REQUIRE_CUDA=1 PYTHONPATH=tests "$python" -m pytest -c /dev/null --rootdir . --import-mode=importlib tests/test_cuda.py tests/test_cuda_ops.py \
  tests/test_emulation.py
"$python" bench/gpu.py --json "$results/gpu.json"
