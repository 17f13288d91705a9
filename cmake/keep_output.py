"""Runs a compiler and keeps what it said in a file: keep_output.py FILE COMMAND...

Shows it too, but for the registers of each kernel, which ptxas tells when asked with -v (check_cuda.py reads them).
"""

import re
import subprocess
import sys
from pathlib import Path

KERNEL_BY_KERNEL = re.compile(r"ptxas info\s+:(?!.*\bC75\d\d\b)|\s+\d+ bytes stack frame, ")


def main() -> int:
    done = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    Path(sys.argv[1]).write_text(done.stdout)
    print(*(line for line in done.stdout.splitlines() if not KERNEL_BY_KERNEL.match(line)), sep="\n", end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
