"""Checks the CUDA kernels without a GPU, in a build with FASTNN_CUDA=ON: what ptxas said, and what the machine code is.

Fails for a kernel that spills registers or keeps anything in local memory, for any message that ptxas serialised wgmma
or ignored setmaxnreg (C75xx), and for a kernel that lacks an instruction that it is there for. Files say the latter:

    // SASS product_kernel: HGMMA UTMALDG      every instance of product_kernel has these instructions
    // LOCAL unary_kernel: why                 its instances may use local memory

A file that includes gemm/mma_cuda.h or gemm/wgmma_cuda.h has a SASS line. Needs cuobjdump and nvdisasm, from CUDA or
from the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm (--no-sass does without, and leaves the code unread).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Kernel:
    name: str
    architecture: str  # sm_80
    registers: int = 0
    spills: int = 0
    stack: int = 0
    instructions: set[str] = field(default_factory=set)


@dataclass
class Report:
    source: Path
    kernels: list[Kernel]
    complaints: list[str]


def tool(name: str) -> str | None:
    """On PATH, or where the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm put it."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/*/bin/{name}"))
    return shutil.which(name) or (str(packaged[-1]) if packaged else None)


def kernels_of(said: str) -> list[Kernel]:
    """As ptxas reports them."""
    kernels: list[Kernel] = []
    for line in said.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            kernels.append(Kernel(found[1], found[2]))
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if kernels:  # device functions that are called come before as well
                kernels[-1].stack = max(kernels[-1].stack, int(found[1]))
                kernels[-1].spills = max(kernels[-1].spills, int(found[2]) + int(found[3]))
        elif (found := re.search(r"Used (\d+) registers", line)) and kernels:
            kernels[-1].registers = int(found[1])
    return kernels


def read_instructions(binary: Path, cuobjdump: str, kernels: list[Kernel]) -> None:
    """Fills in the names of the instructions: HMMA.16816.F32 counts as HMMA and as HMMA.16816 and as itself."""
    path = os.pathsep.join([str(Path(tool("nvdisasm") or ".").parent), os.environ["PATH"]])
    listing = subprocess.run(
        [cuobjdump, "-sass", str(binary)], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    ).stdout
    by_name = {(kernel.architecture, kernel.name): kernel for kernel in kernels}
    architecture, current = "", None
    for line in listing.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.search(r"Function : (\S+)", line):
            current = by_name.get((architecture, found[1]))
        elif current and (found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][A-Z0-9_.]*)", line)):
            parts = found[1].split(".")
            current.instructions.update(".".join(parts[: i + 1]) for i in range(len(parts)))


def promises(text: str) -> list[tuple[str, str]]:
    """What a file's SASS lines say: kernels and their instructions."""
    return re.findall(r"^\s*// SASS (\w+): (.+)$", text, re.MULTILINE)


def complaints_of(text: str, said: str, kernels: list[Kernel], sass: bool) -> list[str]:
    """What the file promises, against what ptxas said and what its kernels are."""
    complaints = [line.strip() for line in said.splitlines() if re.search(r"\bC75\d\d\b", line)]
    local = re.findall(r"^\s*// LOCAL (\w+): ", text, re.MULTILINE)
    promised = promises(text)
    if re.search(r'#include "gemm/(mma|wgmma)_cuda.h"', text) and not promised:
        complaints.append("uses tensor cores, but no line '// SASS kernel: INSTRUCTION' says where")
    for kernel in kernels:
        if kernel.spills:
            complaints.append(f"{kernel.name}: {kernel.spills} bytes of registers spilled")
        if kernel.stack and not any(name in kernel.name for name in local):
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


def check(source: Path, build: Path, cuobjdump: str | None) -> Report:
    objects = list(build.glob(f"csrc/CMakeFiles/cuda_*.dir/{source.relative_to(ROOT / 'csrc')}.o"))
    if not objects:
        return Report(source, [], ["is not built"])
    kept = Path(f"{objects[0]}.ptxas")
    said = kept.read_text() if kept.exists() else ""
    kernels = kernels_of(said)
    if not kernels:
        return Report(source, [], [f"{kept} tells of no kernels"])
    text = source.read_text()
    if cuobjdump and promises(text):
        read_instructions(objects[0], cuobjdump, kernels)
    return Report(source, kernels, complaints_of(text, said, kernels, cuobjdump is not None))


def newest_build() -> Path | None:
    found = [group.parents[2] for group in ROOT.glob("build/*/csrc/CMakeFiles/cuda_base.dir")]
    return max(found, key=lambda build: (build / "CMakeCache.txt").stat().st_mtime, default=None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", type=Path, help="the build's folder; the newest of build/ when left out")
    parser.add_argument("--only", default="", help="the files whose path contains this")
    parser.add_argument("--no-sass", action="store_true", help="do not read the machine code")
    parser.add_argument("--verbose", action="store_true", help="print every kernel's registers")
    options = parser.parse_args()
    build = options.build or newest_build()
    cuobjdump = None if options.no_sass else tool("cuobjdump")
    if not build or not (options.no_sass or (cuobjdump and tool("nvdisasm"))):
        missing = "cuobjdump and nvdisasm must be installed" if build else "nothing under build/ has CUDA kernels"
        print(f"check_cuda: {missing}", file=sys.stderr)
        return 2
    start = time.monotonic()
    sources = [path for path in sorted((ROOT / "csrc").rglob("*.cu")) if options.only in str(path)]
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda source: check(source, build, cuobjdump), sources))
    for report in reports:
        registers = max((kernel.registers for kernel in report.kernels), default=0)
        print(f"{report.source.relative_to(ROOT)}: {len(report.kernels)} kernels, up to {registers} registers")
        for kernel in report.kernels if options.verbose else ():
            print(f"    {kernel.architecture} {kernel.registers:3} registers  {kernel.name}")
        for complaint in report.complaints:
            print(f"  FAILED {complaint}")
    failed = sum(len(report.complaints) for report in reports)
    print(f"{len(reports)} files read in {time.monotonic() - start:.0f} s, {failed} complaints")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
