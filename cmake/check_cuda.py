"""Checks the CUDA kernels without a GPU: compiles each file, and reads what ptxas said and what the machine code is.

Fails for a kernel that spills registers or keeps anything in local memory, for any message that ptxas serialised wgmma
or ignored setmaxnreg (C75xx), and for a kernel that lacks an instruction that it is there for. Files say the latter:

    // SASS product_kernel: HGMMA UTMALDG      every instance of product_kernel has these instructions
    // LOCAL unary_kernel: why                 its instances may use local memory

*_sm90.cu is compiled for 9.0a, the rest for 8.0. A file that includes gemm/mma_cuda.h or gemm/wgmma_cuda.h has a SASS
line. Needs nvcc, and cuobjdump with nvdisasm for the machine code (--no-sass leaves that out).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-DFASTNN_WITH_CUDA", "-diag-suppress", "177"]


@dataclass
class Kernel:
    name: str
    registers: int = 0
    spills: int = 0
    stack: int = 0
    instructions: set[str] = field(default_factory=set)


@dataclass
class Report:
    source: Path
    seconds: float
    kernels: list[Kernel]
    complaints: list[str]


def tool(name: str) -> str | None:
    """On PATH, or where the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm put it."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/*/bin/{name}"))
    return shutil.which(name) or (str(packaged[-1]) if packaged else None)


def compiled(source: Path, cubin: Path) -> tuple[list[Kernel], list[str]]:
    """The kernels as ptxas reports them, and complaints."""
    target = "90a" if source.stem.endswith("_sm90") else "80"
    command = ["nvcc", *FLAGS, f"-gencode=arch=compute_{target},code=sm_{target}", "-Xptxas", "-v,-warn-spills"]
    done = subprocess.run(
        [*command, "-cubin", "-I", str(ROOT / "csrc"), str(source), "-o", str(cubin)], capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    if done.returncode != 0:
        return [], [f"does not compile:\n{said}"]
    complaints = [line.strip() for line in said.splitlines() if re.search(r"\bC75\d\d\b", line)]
    kernels: list[Kernel] = []
    for line in said.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)'", line):
            kernels.append(Kernel(found[1]))
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if kernels:  # device functions that are called come before as well
                kernels[-1].stack = max(kernels[-1].stack, int(found[1]))
                kernels[-1].spills = max(kernels[-1].spills, int(found[2]) + int(found[3]))
        elif (found := re.search(r"Used (\d+) registers", line)) and kernels:
            kernels[-1].registers = int(found[1])
    return kernels, complaints


def read_instructions(cubin: Path, cuobjdump: str, kernels: list[Kernel]) -> None:
    """Fills in the names of the instructions: HMMA.16816.F32 counts as HMMA and as HMMA.16816 and as itself."""
    path = os.pathsep.join([str(Path(tool("nvdisasm") or ".").parent), os.environ["PATH"]])
    listing = subprocess.run(
        [cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    ).stdout
    by_name = {kernel.name: kernel for kernel in kernels}
    current = None
    for line in listing.splitlines():
        if found := re.search(r"Function : (\S+)", line):
            current = by_name.get(found[1])
        elif current and (found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][A-Z0-9_.]*)", line)):
            parts = found[1].split(".")
            current.instructions.update(".".join(parts[: i + 1]) for i in range(len(parts)))


def complaints_of(source: Path, kernels: list[Kernel], sass: bool) -> list[str]:
    """What the file promises against what its kernels are."""
    text = source.read_text()
    complaints = []
    local = re.findall(r"^\s*// LOCAL (\w+): ", text, re.MULTILINE)
    promised = re.findall(r"^\s*// SASS (\w+): (.+)$", text, re.MULTILINE)
    if re.search(r'#include "gemm/(mma|wgmma)_cuda.h"', text) and not promised:
        complaints.append("uses tensor cores, but no line '// SASS kernel: INSTRUCTION' says where")
    for kernel in kernels:
        if kernel.spills:
            complaints.append(f"{kernel.name}: {kernel.spills} bytes of registers spilled")
        in_local = kernel.stack or {"LDL", "STL"} & kernel.instructions
        if in_local and not any(name in kernel.name for name in local):
            complaints.append(f"{kernel.name}: local memory ({kernel.stack} bytes of stack)")
    for name, wanted in promised if sass else ():
        instances = [kernel for kernel in kernels if re.search(rf"\d{name}(?![a-z_])", kernel.name)]
        if not instances:
            complaints.append(f"no kernel {name}, of which a SASS line speaks")
        complaints += [
            f"{kernel.name}: has no {instruction}"
            for kernel in instances
            for instruction in wanted.split()
            if instruction not in kernel.instructions
        ]
    return complaints


def check(source: Path, folder: Path, cuobjdump: str | None) -> Report:
    start = time.monotonic()
    cubin = folder / f"{source.stem}.cubin"
    kernels, complaints = compiled(source, cubin)
    if kernels and cuobjdump:
        read_instructions(cubin, cuobjdump, kernels)
    complaints += complaints_of(source, kernels, cuobjdump is not None) if kernels else []
    return Report(source, time.monotonic() - start, kernels, complaints)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, help="the files to check; all *.cu of csrc when left out")
    parser.add_argument("--jobs", type=int, default=2, help="files compiled at once")
    parser.add_argument("--no-sass", action="store_true", help="do not read the machine code")
    parser.add_argument("--verbose", action="store_true", help="print every kernel's registers")
    options = parser.parse_args()
    cuobjdump = None if options.no_sass else tool("cuobjdump")
    if not shutil.which("nvcc") or not (options.no_sass or (cuobjdump and tool("nvdisasm"))):
        print("check_cuda: nvcc, cuobjdump and nvdisasm must be installed", file=sys.stderr)
        return 2
    sources = options.sources or sorted((ROOT / "csrc").rglob("*.cu"))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        reports = list(pool.map(lambda source: check(source, Path(folder), cuobjdump), sources))
    for report in reports:
        registers = max((kernel.registers for kernel in report.kernels), default=0)
        name = report.source.resolve().relative_to(ROOT)
        print(f"{name}: {len(report.kernels)} kernels, up to {registers} registers, {report.seconds:.0f} s")
        for kernel in report.kernels if options.verbose else ():
            print(f"    {kernel.registers:3} registers  {kernel.name}")
        for complaint in report.complaints:
            print(f"  FAILED {complaint}")
    failed = sum(len(report.complaints) for report in reports)
    print(f"{len(reports)} files in {time.monotonic() - start:.0f} s, {failed} complaints")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
