#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one and may have no network: builds with the tools that are
# installed (pybind11, scikit-build-core, cmake, ninja), tests the CUDA kernels, looks for bad accesses and races
# with compute-sanitizer, and races torch. What it prints also goes to RESULTS/gpu_check.log.
#
#   bench/gpu_check.sh [STAGE...]       default: build test sanitize race
#
# All of it takes less than LIMIT (480) seconds: every stage has its own limit, a stage that fails does not keep the
# later ones from running, and the race goes on where the last one was. SMALL=1 races small sizes, FASTNN_EMULATED=1
# takes a module that is emulated on the CPU (`make cuda-emulated`, PYTHONPATH at its package): to try this script.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
results=${RESULTS:-bench/results}
limit=${LIMIT:-480}
stages=${*:-build test sanitize race}
alone=${FASTNN_EMULATED:+--alone}
mkdir -p "$results"
exec > >(tee -a "$results/gpu_check.log") 2>&1
export PYTHONUNBUFFERED=1
failed=()
reserve=0
[[ " $stages " == *" race "* ]] && reserve=150 # seconds that the stages before leave to the race

# stage SECONDS NAME COMMAND...: runs the command, for no longer than that
stage() {
  local seconds=$1 name=$2 left=$((limit - reserve - SECONDS))
  shift 2
  ((seconds = seconds < left ? seconds : left))
  printf '\n=== [%3d s] %s\n' "$SECONDS" "$name"
  if ((seconds <= 0)) || ! timeout --kill-after=5 "$seconds" "$@"; then
    failed+=("$name")
    return 1
  fi
}

# For this GPU alone: from the PTX in the module the driver would compile every kernel when it is first used.
build() {
  stage 240 "build" "$python" -m pip install --no-build-isolation --no-deps -C cmake.define.FASTNN_CUDA=ON \
    -C cmake.define.CMAKE_CUDA_ARCHITECTURES=native . || exit 1
  "$python" -c "import fastnn; fastnn.show_config()"
}

# Without pyproject.toml's settings: they ask for plugins that such a machine may lack.
run_tests() {
  local parallel=()
  "$python" -c "import xdist" 2>/dev/null && parallel=(-n 8)
  stage 150 "tests on the device" env FASTNN_REQUIRE_CUDA=1 PYTHONPATH="tests${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" -m pytest -q -c /dev/null --rootdir . --import-mode=importlib --tb=short "${parallel[@]}" \
    ${TESTS:-tests/test_cuda*.py tests/test_emulation.py}
}

# Small calls of every family, forward and backward; torch stays on the CPU.
sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "SKIPPED: there is no compute-sanitizer"
    return
  fi
  local tool folder
  for tool in memcheck racecheck; do
    folder=$(mktemp -d)
    stage 60 "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 9 \
      --print-limit 20 "$python" bench/gpu.py --quick --alone --seconds 35 --results "$folder"
    rm -rf "$folder"
  done
}

# The race keeps some seconds for the row that it is at, and for its tables.
run_race() {
  local left=$((limit - SECONDS))
  reserve=0
  stage "$left" "race" "$python" bench/gpu.py $alone ${SMALL:+--quick} --seconds $((left - 50)) --results "$results"
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
for name in $stages; do
  case $name in
    build) build ;;
    test) run_tests ;;
    sanitize) sanitize ;;
    race) run_race ;;
    *) echo "there is no stage $name: build test sanitize race"; exit 2 ;;
  esac
done
printf '\n[%3d s] ' "$SECONDS"
if ((${#failed[@]})); then
  printf 'FAILED:'; printf ' %s;' "${failed[@]}"; echo
  exit 1
fi
echo "all passed"
