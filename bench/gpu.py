"""Elementwise operations and copies on a device: time and bytes moved per second.

    python bench/gpu.py [--device cuda] [--json PATH]

The kernels only stream memory, so GB/s beside the device's own bandwidth is the figure that counts. Beside
CUDA, --device cpu runs the same rows.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastnn
import fastnn.nn.functional as F

SIDE = 8192  # 256 MiB of float32: beyond any cache


def rows(device: str, dtype: Any) -> dict[str, tuple[Callable[[], Any], int]]:
    """For each name, a call and how often it moves an element of the tensor."""
    x = fastnn.ones(SIDE, SIDE, device=device).to(dtype)
    y = fastnn.ones(SIDE, SIDE, device=device).to(dtype)
    row = fastnn.ones(SIDE, device=device).to(dtype)
    return {
        "fill": (lambda: y.fill_(1), 1),
        "copy": (lambda: y.copy_(x), 2),
        "transposed copy": (lambda: y.copy_(x.T), 2),
        "add": (lambda: x + y, 3),
        "add a row": (lambda: x + row, 2),
        "exp": (lambda: x.exp(), 2),
        "gelu": (lambda: F.gelu(x), 2),
    }


def seconds(call: Callable[[], Any], synchronize: Callable[[], None], rounds: int = 15) -> float:
    times = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[rounds // 3 :])  # the first ones fill the allocator's cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    synchronize = fastnn.cuda.synchronize if args.device == "cuda" else lambda: None
    figures = []
    for dtype in (fastnn.float32, fastnn.bfloat16):
        for name, (call, moves) in rows(args.device, dtype).items():
            took = seconds(call, synchronize)
            rate = moves * SIDE * SIDE * (4 if dtype == fastnn.float32 else 2) / took / 1e9
            figures.append({"row": name, "dtype": str(dtype), "milliseconds": 1e3 * took, "gigabytes_per_second": rate})
            print(f"{name:16} {dtype!s:18} {1e3 * took:9.3f} ms {rate:9.1f} GB/s", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"device": args.device, "rows": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
