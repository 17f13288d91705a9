"""The device functions that kernels are made of, and the mistakes that the emulation finds.

tests/emulation/primitives*.cu are programs that run on a GPU as well, which shows whether the emulation is right.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastnn

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "csrc"
EMULATION = TESTS / "emulation"

pytestmark = [
    pytest.mark.skipif(not fastnn.cuda.is_available(), reason="needs a GPU or its emulation"),
    pytest.mark.skipif(not SOURCES.exists(), reason="compiles the C++, and there is none here"),
]
emulated = pytest.mark.skipif(not fastnn.cuda.is_emulated(), reason="is about the emulation")

MISTAKES = {
    "poison": "read poison: NaN",
    "no wait": "read poison: -1",
    "early exit": "ended, while|threads of the block have ended",
    "lane exit": "ended, while lanes|have ended or do not exist",
    "divergent": "__ballot_sync, while other lanes|__shfl_xor_sync, while other lanes",
    "deadlock": "no thread can go on(.|\n)*waits at named barrier(.|\n)*waits at named barrier",
    "spin": "no thread can go on(.|\n)*waits at a flag that nobody sets",
    "beyond": "illegal access at byte \\d+ of an allocation of 256 bytes",
    "released": "illegal access at byte \\d+ of an allocation of 256 bytes that was released",
    "beyond shared": "of 1001 bytes of dynamic shared memory",
    "far beyond shared": "of 1000 bytes of dynamic shared memory",
    "host pointer": "holds the address 0x[0-9a-f]+ of the host's memory",
    "device pointer": "the host touched device memory",
    "too many threads": r"a block of \(2048, 1, 1\) threads",
    "too much shared memory": "245760 bytes of dynamic shared memory; a block has 232448",
    "cooperative": "a cooperative grid of 4096 blocks, but only 8 fit",
}
MISTAKES_SM90 = {
    "bytes": "no thread can go on(.|\n)*waits at mbarrier",
    "parity": "no thread can go on(.|\n)*waits at mbarrier",
    "fence": "wgmma without wgmma_fence",
    "wait": "wrong numbers|more arrivals in a phase than the barrier counts",
    "stride": "wrong numbers",
    "store wait": "while the copy engine still reads its shared memory",
}


def build(name: str, folder: Path) -> Path:
    program = folder / name
    sources = [str(EMULATION / f"{name}.cu"), str(SOURCES / "core" / "cuda_launch.cpp")]
    if fastnn.cuda.is_emulated():
        runtime = [str(source) for source in sorted(EMULATION.glob("*.cpp"))]
        flags = ["-std=c++17", "-O1", "-g1", "-march=x86-64-v3", "-Wno-unknown-pragmas", "-Wno-psabi"]
        flags += ["-DFASTNN_CUDA_EMULATED", "-include", "emulation/device.h"]
        command = ["c++", *flags, "-I", str(TESTS), "-I", str(EMULATION), "-x", "c++", *sources, *runtime]
    else:
        if not shutil.which("nvcc"):
            pytest.skip("nvcc is not installed")
        target = "90a" if name.endswith("sm90") else "80"
        if target == "90a" and fastnn.cuda.get_device_capability() != (9, 0):
            pytest.skip("needs a GPU of compute capability 9.0")
        command = ["nvcc", "-std=c++17", "-O3", f"-gencode=arch=compute_{target},code=sm_{target}"]
        command += ["--expt-relaxed-constexpr", *sources]
    done = subprocess.run([*command, "-I", str(SOURCES), "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("primitives")
    return {name: build(name, folder) for name in ("primitives", "primitives_sm90")}


@pytest.mark.parametrize("name", ["primitives", "primitives_sm90"])
def test_primitives(programs: dict[str, Path], name: str) -> None:
    done = subprocess.run([str(programs[name])], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok " in done.stdout
    assert "FAILED" not in done.stdout


@emulated
@pytest.mark.parametrize(
    ("name", "mistake"),
    [*(("primitives", m) for m in MISTAKES), *(("primitives_sm90", m) for m in MISTAKES_SM90)],
)
def test_mistakes_are_found(programs: dict[str, Path], name: str, mistake: str) -> None:
    done = subprocess.run([str(programs[name]), mistake], capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert "not noticed" not in said
    assert re.search({**MISTAKES, **MISTAKES_SM90}[mistake], said), said
