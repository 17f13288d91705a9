"""fastnn on a GPU beside torch as it comes and at its best, one line of JSON for each row as it is measured.

    python bench/gpu.py [--quick] [--only REGEX] [--seconds 300] [--results bench/results]

It can be stopped at any time, and goes on where it was: rows that are in the file are left out, unless --only names
them; for another build, delete the .jsonl file. A row that fails, hangs or kills its process is written with its
error, and the race goes on without it.

All contenders run in one process, another one than this: a GPU runs one kernel after the other whoever sends it, so
they can't disturb each other as thread pools do on a CPU, and they share the row's inputs and compare their results
without a copy. Each is timed by the device's own events. torch also computes the reference, in float64.
--alone leaves torch's GPU out: the reference comes from its CPU, and only fastnn is timed, for a fastnn emulated on
the CPU (made by `make cuda-emulated`) or for compute-sanitizer.
"""

import argparse
import json
import math
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

from baselines import ULPS, allowed_error  # noqa: E402
from gpu_row import Place, Row, Source  # noqa: E402
from gpu_rows import FAMILIES, rows  # noqa: E402
from report import show_ratio, show_time  # noqa: E402

Record = dict[str, Any]
ROW_SECONDS = 40  # a row that takes longer hangs
START_SECONDS = 90  # the imports, the driver, the first row
ROUNDS, ROUND_SECONDS, MOST_CALLS = 9, 0.01, 200
TF32_ROUNDOFF = 2.0**-11  # of what is multiplied


# ---- in the worker ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """A contender, and what it is set to."""

    name: str
    lib: str
    channels_last: bool = False
    tuned: bool = False
    attention: str = ""  # the one backend of torch's attention that may be chosen

    def races(self, row: Row) -> bool:
        return (row.images or not self.channels_last) and (row.family == "attention" or not self.attention)

    def switch(self, torch: Any, row: Row) -> None:
        """Makes torch's settings, which are the process's, this contender's for the row.

        As it comes, torch computes float32 convolutions and recurrent layers in TF32; at its best it holds to the row.
        """
        if self.lib != "torch":
            return
        torch.set_float32_matmul_precision("high" if row.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = row.tf32 or not self.tuned
        torch.backends.cudnn.benchmark = self.tuned
        torch.backends.cuda.enable_cudnn_sdp(True)
        for enable in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_math_sdp"):
            getattr(torch.backends.cuda, enable)(not self.attention)


TORCH = Side("torch", "torch")
SIDES = [
    Side("fastnn", "fastnn"),
    Side("fastnn channels_last", "fastnn", channels_last=True),
    TORCH,
    Side("torch best", "torch", tuned=True),
    Side("torch best channels_last", "torch", channels_last=True, tuned=True),
    Side("torch cudnn attention", "torch", tuned=True, attention="cudnn"),
]
FASTNN = ("fastnn", "fastnn channels_last")
BEST = ("torch best", "torch best channels_last", "torch cudnn attention")


def _flat(result: Any) -> list[Any]:
    return [y for part in result for y in _flat(part)] if isinstance(result, list | tuple) else [result]


class Bench:
    """Prepares, checks and times rows; raises what the row raises."""

    def __init__(self, alone: bool, quick: bool) -> None:
        self.libs = {name: import_module(name) for name in ("fastnn", "torch")}
        self.torch, self.fastnn = self.libs["torch"], self.libs["fastnn"]
        if not alone and not self.torch.cuda.is_available():
            raise SystemExit("torch has no GPU here: --alone races fastnn without it")
        self.alone, self.quick = alone, quick
        self.home = "cpu" if alone else "cuda"  # of the inputs and of the reference

    def _given(self, tensors: list[Any], side: Side) -> list[Any]:
        """The inputs in the contender's library, layout and device: their memory is shared where that is possible."""
        lib, given = self.libs[side.lib], []
        for x in tensors:
            value = lib.from_dlpack(x).to("cuda") if lib is self.fastnn else x.detach()
            image = side.channels_last and value.ndim == 4
            given.append(value.contiguous(memory_format=lib.channels_last) if image else value)
        return given

    def _wait(self) -> None:
        self.fastnn.cuda.synchronize()
        if not self.alone:
            self.torch.cuda.synchronize()

    def is_broken(self) -> bool:
        try:
            self._wait()
        except RuntimeError:
            return True
        return False

    def _worst_error(self, results: Any, expected: list[Any], row: Row) -> float:
        worst, found = 0.0, _flat(results)
        if len(found) != len(expected):
            raise ValueError(f"{len(found)} results, expected {len(expected)}")
        for y, exact in zip(found, expected, strict=True):
            if y.__class__.__module__.startswith("fastnn"):
                y = y.detach().contiguous()
                y = self.torch.from_dlpack(y.cpu() if self.alone else y)
            if y.shape != exact.shape:
                raise ValueError(f"a result has shape {tuple(y.shape)}, expected {tuple(exact.shape)}")
            if exact.numel() == 0:
                continue
            magnitude = exact.abs()
            largest = magnitude.max()
            allowed = allowed_error(magnitude, largest, row.terms, row.dtype, row.rounds_within)
            if row.tf32:
                allowed = allowed + ULPS * (1 + row.rounds_within) * TF32_ROUNDOFF * largest
            share = float(((y.detach().double() - exact).abs() / (allowed + 1e-300)).max())
            worst = max(worst, share) if share == share else math.inf
        return worst

    def measure(self, row: Row) -> Record:
        """Times and errors by contender; what a rival fails with is recorded, what fastnn fails with is raised."""
        torch = self.torch
        torch.manual_seed(0)
        tensors = row.inputs(Source(torch, self.home, row.dtype))
        exact = [x.double() if x.is_floating_point() else x for x in tensors]
        TORCH.switch(torch, row)
        reference = row.prepare(Place(torch, self.home, float64=True), exact)
        expected = [y.detach().clone() for y in _flat(reference())]
        del reference, exact
        self.fastnn.set_float32_matmul_precision("high" if row.tf32 else "highest")
        calls: dict[str, tuple[Side, Callable[[], Any]]] = {}
        record: Record = {"seconds": {}, "errors": {}, "failures": {}}
        for side in SIDES:
            if not side.races(row) or (self.alone and side.lib == "torch"):
                continue
            try:
                side.switch(torch, row)
                self._wait()
                place = Place(self.libs[side.lib], "cuda", channels_last=side.channels_last, tuned=side.tuned)
                call = row.prepare(place, self._given(tensors, side))
                result = call()
                self._wait()
                record["errors"][side.name] = self._worst_error(result, expected, row)
                calls[side.name] = side, call
            except Exception as failure:
                if side.name == "fastnn":
                    raise
                record["failures"][side.name] = f"{type(failure).__name__}: {failure}"[:300]
        record["seconds"] = self._times(row, calls)
        return record

    def _times(self, row: Row, calls: dict[str, tuple[Side, Callable[[], Any]]]) -> dict[str, float]:
        """Medians, the contenders taking turns."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        counts: dict[str, int] = {}
        for name, (side, call) in calls.items():
            side.switch(self.torch, row)
            self._seconds(side, call, 1 if self.quick else 3)  # warms up
            once = self._seconds(side, call, 1)
            counts[name] = 1 if self.quick else max(1, min(MOST_CALLS, int(ROUND_SECONDS / max(once, 1e-7))))
        for _ in range(1 if self.quick else ROUNDS):
            for name, (side, call) in calls.items():
                side.switch(self.torch, row)
                times[name].append(self._seconds(side, call, counts[name]))
        return {name: statistics.median(values) for name, values in times.items()}

    def _seconds(self, side: Side, call: Callable[[], Any], count: int) -> float:
        """The mean of `count` calls, one after the other, between two events of the contender's stream."""
        events = self.libs[side.lib].cuda.Event
        start, end = events(enable_timing=True), events(enable_timing=True)
        self._wait()
        start.record()
        for _ in range(count):
            call()
        end.record()
        self._wait()
        return start.elapsed_time(end) / 1e3 / count

    def device(self) -> Record:
        cuda = self.fastnn.cuda
        return {"device": cuda.get_device_name(), "torch": self.torch.__version__, "fastnn": self.fastnn.__version__}


def _serve(connection: Connection, alone: bool, quick: bool) -> None:
    """Measures rows by number until None comes, or until an error after which every call to the device fails."""
    bench, table = Bench(alone, quick), rows(quick)
    connection.send(bench.device())
    while (index := connection.recv()) is not None:
        try:
            connection.send(bench.measure(table[index]))
        except Exception as failure:
            broken = bench.is_broken()
            connection.send({"failed": f"{type(failure).__name__}: {failure}"[:500], "broken": broken})
            if broken:
                return
        if not alone:
            bench.torch.cuda.empty_cache()
            bench.fastnn.cuda.empty_cache()


# ---- in this process ----------------------------------------------------------------------------


class Worker:
    """The process that measures; another one is started after it has died or had to be ended."""

    def __init__(self, alone: bool, quick: bool) -> None:
        self._settings, self._process, self._connection = (alone, quick), None, None
        self.device = self._start()

    def _start(self) -> Record:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._settings), daemon=True)
        self._process.start()
        theirs.close()
        return self._answer(START_SECONDS)

    def _answer(self, seconds: float) -> Record:
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
            failed = f"no result after {seconds:.0f} s"
        except (EOFError, OSError):
            self._process.join(5)
            failed = f"the process ended with {self._process.exitcode}"
        self._end()
        return {"failed": failed}

    def _end(self) -> None:
        self._process.kill()
        self._process.join(10)

    def measure(self, index: int) -> Record:
        """The row's figures, or {"failed": why}."""
        if not self._process.is_alive() and "failed" in (started := self._start()):
            return started
        try:
            self._connection.send(index)
        except OSError as failure:
            return {"failed": f"the process ended before the row: {failure}"}
        record = self._answer(ROW_SECONDS)
        if record.pop("broken", False):
            self._end()
        return record

    def close(self) -> None:
        if self._process.is_alive():
            self._connection.send(None)
            self._process.join(10)
            self._end()


def recorded(path: Path) -> dict[str, Record]:
    """The rows that are in the file, by name, the later line of a name counting; a torn last line is left out."""
    found: dict[str, Record] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(text)
        except json.JSONDecodeError:
            continue
        found[record["name"]] = record
    return found


def race(
    table: list[Row],
    measure: Callable[[int], Record],
    path: Path,
    seconds: float,
    only: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Record]:
    """Measures the rows that are not in the file, and writes each as it comes.

    A family stops when its seconds are used up, and everything when `seconds` are; the next call goes on there.
    """
    done, start, spent = recorded(path), clock(), dict.fromkeys(FAMILIES, 0.0)
    if path.exists() and not path.read_text().endswith("\n"):
        path.write_text(path.read_text() + "\n")  # the last line is torn
    for index, row in enumerate(table):
        if not re.search(only, row.name) if only else row.name in done:
            continue
        if clock() - start > seconds or spent[row.family] > FAMILIES[row.family]:
            continue
        before = clock()
        facts = {key: getattr(row, key) for key in ("name", "family", "dtype", "tf32", "flops", "bytes")}
        record = {**facts, **measure(index)}
        spent[row.family] += clock() - before
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        yield record


# ---- what is read -------------------------------------------------------------------------------


def least(record: Record, names: tuple[str, ...]) -> float | None:
    return min((record["seconds"][name] for name in names if name in record["seconds"]), default=None)


def ratios(record: Record) -> tuple[float | None, float | None]:
    """torch's time as it comes over fastnn's, and that of torch's best form over that of fastnn's better layout."""
    own, own_best = least(record, FASTNN[:1]), least(record, FASTNN)
    torch, best = least(record, ("torch",)), least(record, BEST)
    return (torch / own if torch and own else None, best / own_best if best and own_best else None)


def wrong(record: Record) -> bool:
    """Whether fastnn failed, or one of its results is off by more than rounding may do."""
    own = [name for name in record.get("failures", {}) if name in FASTNN]
    errors = [error for name, error in record.get("errors", {}).items() if name in FASTNN]
    return "failed" in record or bool(own) or any(not error <= 1 for error in errors)


def cells(record: Record) -> list[str]:
    """name, fastnn's time, its speed, torch's time, the two ratios, remarks."""
    if "failed" in record:
        return [record["name"], "FAILED", "", "", "", "", record["failed"].splitlines()[0][:160]]
    own = record["seconds"]["fastnn"]
    speed = f"{record['bytes'] / own / 1e9:.0f} GB/s" if record["bytes"] else ""
    if record["flops"] > 100 * record["bytes"]:  # below, memory is what limits an H200
        speed = f"{record['flops'] / own / 1e12:.1f} TFLOP/s"
    remarks = [f"{name} IS WRONG ({e:.2g} x)" for name, e in record["errors"].items() if name in FASTNN and not e <= 1]
    remarks += [f"{name}: {text.splitlines()[0][:100]}" for name, text in record["failures"].items() if name in FASTNN]
    shown = [show_ratio(ratio) for ratio in ratios(record)]
    return [
        record["name"],
        show_time(own),
        speed,
        show_time(least(record, ("torch",))),
        *shown,
        "; ".join(remarks),
    ]


def line(parts: list[str]) -> str:
    name, own, speed, torch, plain, best, remarks = parts
    return f"{name:52.52} {own:>10} {speed:>15} {torch:>10} {plain:>8} {best:>8}  {remarks}"


HEADING = ["", "fastnn", "speed", "torch", "torch /", "best /", ""]


def table_of(result: Record) -> str:
    """Markdown: a line for each row, then the geometric mean and the minimum of each family's ratios."""
    show = lambda parts: "| " + " | ".join(parts) + " |"  # noqa: E731
    lines = [
        f"{result['device']}; torch {result['torch']}. Medians by events of the device; a ratio is torch's time over "
        "fastnn's: above 1 fastnn is faster. best: torch's fastest form against fastnn's faster layout.",
        "",
        show([*HEADING[:4], "torch / fastnn", "best / fastnn", ""]),
        "|---|---:|---:|---:|---:|---:|---|",
        *(show(cells(record)) for record in result["rows"]),
        "",
        show(["geometric mean / minimum", "rows", "torch / fastnn", "best / fastnn"]),
        "|---|---:|---:|---:|",
    ]
    for family in FAMILIES:
        members = [r for r in result["rows"] if r["family"] == family and "failed" not in r]
        spreads = []
        for column in (0, 1):
            values = [ratio for r in members if (ratio := ratios(r)[column]) is not None]
            mean = math.exp(statistics.fmean(map(math.log, values))) if values else 0
            spreads.append(f"{mean:.2f} / {min(values):.2f}" if values else "-")
        lines.append(show([family, str(len(members)), *spreads]))
    return "\n".join(lines) + "\n"


def slug(device: str) -> str:
    """ "h200" of "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower().replace("nvidia", "")).strip("-")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, each call once: whether it works")
    parser.add_argument("--alone", action="store_true", help="without torch on the GPU")
    parser.add_argument("--only", metavar="REGEX", help="the rows whose names match, also those in the file")
    parser.add_argument("--seconds", type=float, default=300, help="rows that do not fit are left to the next call")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="the folder of the files")
    args = parser.parse_args()
    worker = Worker(args.alone, args.quick)
    if "failed" in worker.device:
        print(worker.device["failed"])
        return 1
    args.results.mkdir(parents=True, exist_ok=True)
    base = args.results / f"{slug(worker.device['device'])}-{'quick' if args.quick else 'race'}"
    lines, table = base.with_suffix(".jsonl"), rows(args.quick)
    print(worker.device, line(HEADING), sep="\n", flush=True)
    for record in race(table, worker.measure, lines, args.seconds, args.only):
        print(line(cells(record)), flush=True)
    worker.close()
    done = recorded(lines)
    result = {**worker.device, "rows": [done[row.name] for row in table if row.name in done]}
    base.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    base.with_suffix(".md").write_text(table_of(result))
    bad = [record["name"] for record in result["rows"] if wrong(record)]
    print(f"{len(result['rows'])} of {len(table)} rows are in {base}.json; failed or wrong: {bad or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
