"""The race: fastnn beside the rivals installed, in one run, with the machine's measured ceilings.

    python bench/run.py [--quick] [--threads N] [--family FAMILY] [--only PATTERN] [--dtype DTYPE]
                        [--contenders NAME,...] [--json PATH [--resume]] [--table PATH] [--plot PATH]

Contenders: fastnn and torch as their users run them, on NCHW and on channels_last images, torch again with a
tuned malloc, ONNX Runtime, numpy. Each runs in a process of its own. Rounds alternate between them; medians are
printed, and a ratio is the rival's time over fastnn's: above 1 fastnn is faster. All rows are shown, whichever
way they fall. In the same run every result, gradients too, is checked against torch in float64; a wrong one of
fastnn's ends the run with an error.

Figures are written row by row. A file that holds rows of this machine and thread count keeps those that are not
raced again, and with --resume those that it has are not raced: a race may be broken off and taken up, or a family
raced anew.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

import ceilings  # noqa: E402
import report  # noqa: E402
from baselines import Peer  # noqa: E402
from contenders import QUICK, installed, reference  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402


def check(workload: Workload, number: int, judge: Peer, running: list[Peer]) -> dict[str, float]:
    """The worst error of each contender as a share of what rounding may do; empty without a reference."""
    if not judge.prepare(number):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        terms = judge.save(Path(folder))
        return {peer.name: peer.check(Path(folder), terms, workload.dtype) for peer in running}


def race(number: int, peers: list[Peer], judge: Peer, rounds: int, seconds: float) -> dict[str, Any]:
    """Errors, median and best times of each contender that has the call."""
    workload = WORKLOADS[number]
    running = [peer for peer in peers if peer.prepare(number)]
    errors = check(workload, number, judge, running)
    times: dict[str, list[float]] = {peer.name: [] for peer in running}
    everyone, start = [*peers, judge], time.perf_counter()
    used = machine_seconds() - sum(peer.cpu_seconds() for peer in everyone)
    for turn in range(rounds):
        for peer in running[turn % len(running) :] + running[: turn % len(running)]:
            times[peer.name].append(peer.time(seconds))
    used = machine_seconds() - sum(peer.cpu_seconds() for peer in everyone) - used
    return {
        "name": workload.name,
        "group": workload.group,
        "dtype": workload.dtype,
        "flops": workload.flops,
        "bytes": workload.bytes,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "best": {name: min(values) for name, values in times.items()},
        "errors": errors,
        "foreign_cpus": used / (time.perf_counter() - start),
    }


def machine_seconds() -> float:
    """CPU time that all processes have used on the cores open to this one since the machine started."""
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name in cores:
            user, nice, system, _, _, irq, soft, steal, *_ = map(int, values)
            ticks += user + nice + system + irq + soft + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    model = next(
        (text.split(":")[1].strip() for text in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in text),
        "",
    )
    cpus = len(os.sched_getaffinity(0))
    return f"{model or platform.processor()}, {cpus} CPUs, {platform.system()} {platform.machine()}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows and short rounds: under 45 seconds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--family", default="", help="rows of this family, such as conv or matmul")
    parser.add_argument("--only", metavar="PATTERN", default="", help="rows whose name matches this regular expression")
    parser.add_argument("--dtype", default="", help="rows of this dtype")
    parser.add_argument("--contenders", metavar="NAMES", default="", help="such as 'fastnn,torch'; all by default")
    parser.add_argument("--rounds", type=int, help="timings of each contender (9; with --quick 5)")
    parser.add_argument(
        "--json", type=Path, help=f"where to write the figures (a full run: {report.RESULTS.relative_to(HERE.parent)})"
    )
    parser.add_argument("--resume", action="store_true", help="leave out the rows that the file of --json has")
    parser.add_argument("--table", type=Path, help="write a table in Markdown")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this PNG")
    return parser.parse_args()


def choose(options: argparse.Namespace) -> list[int]:
    """The numbers of the rows asked for."""
    chosen = [
        number
        for number, w in enumerate(WORKLOADS)
        if re.search(options.only, w.name)
        and (w.quick or not options.quick)
        and options.family in ("", w.family)
        and options.dtype in ("", w.dtype)
    ]
    if not chosen:
        raise SystemExit("no row matches --family, --only and --dtype")
    return chosen


def earlier_rows(target: Path | None, threads: int) -> dict[str, dict[str, Any]]:
    """By name, the rows of a race of this machine with as many threads."""
    if target is None or not target.exists():
        return {}
    result = json.loads(target.read_text())
    if (result["machine"], result["threads"]) != (machine(), threads):
        raise SystemExit(f"{target} holds figures of {result['threads']} threads on {result['machine']}")
    return {row["name"]: row for row in result["rows"]}


def write(path: Path, text: str) -> None:
    """Aside first: a run that is broken off leaves the file before or the file after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(text + "\n")
    aside.replace(path)


def main() -> None:
    options = arguments()
    chosen = choose(options)
    rounds, seconds = options.rounds or (5 if options.quick else 9), 0.02 if options.quick else 0.05
    names = [name for name in options.contenders.split(",") if name] or (list(QUICK) if options.quick else [])
    whole = not (options.quick or options.only or options.family or options.dtype or names)
    target = options.json or (report.RESULTS if whole else None)
    known = earlier_rows(target, options.threads)
    if options.resume:
        chosen = [number for number in chosen if WORKLOADS[number].name not in known]

    start = time.perf_counter()
    limits = ceilings.measure(options.threads, quick=options.quick)
    print(f"{machine()}; {options.threads} threads\n{ceilings.show(limits)}\n")
    peers = [Peer(contender, options.threads) for contender in installed(names)]
    judge = Peer(reference(), options.threads)
    print(report.heading())
    rows = []
    try:
        for number in chosen:
            rows.append(race(number, peers, judge, rounds, seconds))
            print(report.line(rows[-1], limits, options.threads), flush=True)
            known[rows[-1]["name"]] = rows[-1]
            ordered = [known[w.name] for w in WORKLOADS if w.name in known]
            result = {"machine": machine(), "threads": options.threads, "ceilings": limits, "rows": ordered}
            if target:
                write(target, json.dumps(result, indent=1))
            if options.table:
                write(options.table, report.table(result))
    finally:
        for peer in [*peers, judge]:
            peer.close()
    print(f"\n{report.summary(rows)}\n{time.perf_counter() - start:.0f} s")
    disturbed = sum(row["foreign_cpus"] > 0.3 for row in rows)
    if disturbed:
        print(f"other processes were busy during {disturbed} of {len(rows)} rows: their figures are not to be trusted")
    if options.plot:
        report.plot(rows, options.plot)
    if wrong := [row["name"] for row in rows if not row["errors"].get("fastnn", 0) <= 1]:
        raise SystemExit("fastnn's results are wrong in: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
