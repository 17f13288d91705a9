"""Fails when an object of a CPU level defines a weak symbol.

Inline functions and templates are weak: the linker keeps one copy for the whole module, and may pick
the one compiled with AVX-512 for a CPU that lacks it. Code in *_cpu.cpp files therefore lives in
anonymous namespaces and uses no STL. This runs before linking; afterwards it would be too late.
"""

import argparse
import pathlib
import subprocess
import sys

WEAK = {"W", "V", "u"}


def weak_symbols(nm: str, path: str) -> list[str]:
    lines = subprocess.run([nm, "-C", path], check=True, capture_output=True, text=True).stdout.splitlines()
    fields = (line.split(maxsplit=2) for line in lines)
    return [parts[2] for parts in fields if len(parts) == 3 and parts[1] in WEAK]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--stamp", required=True)
    parser.add_argument("objects", nargs="+")
    args = parser.parse_args()
    found = [(path, name) for path in args.objects for name in weak_symbols(args.nm, path)]
    for path, name in found:
        print(f"{path}: weak symbol {name}", file=sys.stderr)
    if found:
        return 1
    pathlib.Path(args.stamp).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
