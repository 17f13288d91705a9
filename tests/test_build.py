"""The build's choices, by configuring only: FASTNN_CUDA with broken compilers, and the symbol check."""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists(), reason="runs in the source tree only: there is nothing to build here"
)


def find_tool(name: str) -> str:
    """A tool of this environment (the cmake wheel), else of the machine."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    tool = shutil.which(name, path=path)
    assert tool, f"{name} is needed: pip install '.[test]'"
    return tool


class Configured:
    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.ok = process.returncode == 0
        self.output = re.sub(r"\s+", " ", process.stdout)
        self.cuda_lines = [line for line in process.stdout.splitlines() if line.startswith("-- CUDA:")]


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> Path:
    """An nvcc that refuses everything, as a real one does with a host compiler that is too new."""
    nvcc = tmp_path / "fake" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\ntouch {nvcc}.called\necho 'error: unsupported GNU version' >&2\nexit 1\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return nvcc


def configure(tmp_path: Path, option: str, nvcc: Path) -> Configured:
    import pybind11

    command = [find_tool("cmake"), "-S", str(ROOT), "-B", str(tmp_path / "build"), "-G", "Unix Makefiles"]
    command += [f"-DFASTNN_CUDA={option}", "-DFASTNN_CPU_LEVELS=baseline", f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    env = {**os.environ, "PATH": f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"}
    env.pop("CUDACXX", None)
    if not nvcc.exists():
        env["CUDACXX"] = str(nvcc)
    process = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Configured(process)


def test_auto_builds_on_without_cuda_when_nvcc_is_broken(tmp_path: Path, fake_nvcc: Path) -> None:
    result = configure(tmp_path, "AUTO", fake_nvcc)
    assert result.ok, result.output
    assert Path(f"{fake_nvcc}.called").exists()
    assert result.cuda_lines == ["-- CUDA: off (no working nvcc; FASTNN_CUDA=ON makes that an error)"]


def test_auto_builds_on_without_cuda_when_nvcc_is_missing(tmp_path: Path) -> None:
    result = configure(tmp_path, "AUTO", tmp_path / "nowhere" / "nvcc")
    assert result.ok, result.output
    assert len(result.cuda_lines) == 1
    assert result.cuda_lines[0].startswith("-- CUDA: off (no working nvcc")


def test_on_stops_with_a_message_when_nvcc_is_broken(tmp_path: Path, fake_nvcc: Path) -> None:
    result = configure(tmp_path, "ON", fake_nvcc)
    assert not result.ok
    assert "FASTNN_CUDA=ON, but no working nvcc was found" in result.output
    assert result.cuda_lines == []


def test_off_does_not_look_for_nvcc(tmp_path: Path, fake_nvcc: Path) -> None:
    result = configure(tmp_path, "OFF", fake_nvcc)
    assert result.ok, result.output
    assert not Path(f"{fake_nvcc}.called").exists()
    assert result.cuda_lines == ["-- CUDA: off (FASTNN_CUDA=OFF)"]


def test_an_unknown_choice_is_refused(tmp_path: Path, fake_nvcc: Path) -> None:
    result = configure(tmp_path, "MAYBE", fake_nvcc)
    assert not result.ok
    assert "expected AUTO, ON, OFF or EMULATED, got 'MAYBE'" in result.output


@pytest.mark.parametrize(
    ("source", "weak"),
    [
        ("namespace { int twice(int x) { return 2 * x; } }  int call(int x) { return twice(x); }", False),
        ("inline int twice(int x) { return 2 * x; }  int call(int x) { return twice(x); }", True),
    ],
)
def test_symbol_check_refuses_weak_symbols(tmp_path: Path, source: str, weak: bool) -> None:
    (tmp_path / "level.cpp").write_text(source)
    level_object = tmp_path / "level.o"
    subprocess.run([find_tool("c++"), "-O0", "-c", str(tmp_path / "level.cpp"), "-o", str(level_object)], check=True)
    check = [sys.executable, str(ROOT / "cmake" / "check_level_symbols.py"), "--stamp", str(tmp_path / "ok")]
    process = subprocess.run([*check, str(level_object)], capture_output=True, text=True)
    assert (process.returncode == 1) is weak
    assert (tmp_path / "ok").exists() is not weak
    assert ("weak symbol twice(int)" in process.stderr) is weak


PTXAS_WORDS = """
ptxas info    : Compiling entry function '_ZN12_GLOBAL__N_116product_kernelIfEEvv' for 'sm_80'
ptxas info    : Function properties for _ZN12_GLOBAL__N_116product_kernelIfEEvv
    {stack} bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
{more}
"""


@pytest.mark.parametrize(
    ("stack", "spills", "more", "text", "complaint"),
    [
        (0, 0, "", "", None),
        (8, 0, "", "", "local memory"),
        (8, 0, "", "// LOCAL product_kernel: because", None),
        (8, 4, "", "// LOCAL product_kernel: because", "spilled"),
        (0, 0, "ptxas info    : (C7510) wgmma.mma_async instructions are serialized", "", "C7510"),
        (0, 0, "", '#include "gemm/mma_cuda.h"', "no line"),
        (0, 0, "", "// SASS product_kernel: HMMA", "has no HMMA"),
        (0, 0, "", "// SASS other_kernel: HMMA", "no kernel other_kernel"),
    ],
)
def test_check_of_cuda_kernels(stack: int, spills: int, more: str, text: str, complaint: str | None) -> None:
    spec = importlib.util.spec_from_file_location("check_cuda", ROOT / "cmake" / "check_cuda.py")
    assert spec and spec.loader
    check_cuda = importlib.util.module_from_spec(spec)
    sys.modules["check_cuda"] = check_cuda  # where dataclasses look for it
    spec.loader.exec_module(check_cuda)
    said = PTXAS_WORDS.format(stack=stack, spills=spills, more=more)
    complaints = check_cuda.complaints_of(text, said, check_cuda.kernels_of(said), sass=True)
    assert len(complaints) == (complaint is not None)
    assert complaint is None or complaint in complaints[0]
