"""The figures of a race as text: its lines, its summary, and tables in Markdown.

python bench/report.py [bench/results/race.json]
"""

import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ceilings
from contenders import FASTNN, RIVALS

RESULTS = Path(__file__).parent / "results" / "race.json"
BEST = "best"  # the column of torch's faster layout against fastnn's faster layout
TITLES = {"torch": "torch", BEST: "best", "tuned torch": "tuned", "onnxruntime": "ORT", "numpy": "numpy"}


def fastest(row: dict[str, Any], names: tuple[str, ...]) -> float | None:
    """The least of these contenders' times."""
    return min((row["seconds"][name] for name in names if name in row["seconds"]), default=None)


def rival_seconds(row: dict[str, Any], rival: str) -> float | None:
    """The time of the rival's faster form."""
    return fastest(row, RIVALS["torch" if rival == BEST else rival])


def ratio(row: dict[str, Any], rival: str) -> float | None:
    """The rival's time over fastnn's, from NCHW but in the column of the best: above 1 fastnn is faster."""
    seconds, own = rival_seconds(row, rival), fastest(row, FASTNN if rival == BEST else FASTNN[:1])
    return None if seconds is None or own is None else seconds / own


def rate(row: dict[str, Any], limits: dict[str, Any], threads: int) -> tuple[str, str]:
    """("123.4 GFLOP/s", "78 %") of fastnn's median: against the peak of the dtype, or the copy of as many bytes."""
    seconds = row["seconds"]["fastnn"]
    rows = limits.get("rows", {})
    if row["flops"]:
        value, unit, ceiling = row["flops"] / seconds / 1e9, "GFLOP/s", "fma float32"
        if row["dtype"] == "bfloat16" and "amx bfloat16" in rows:
            ceiling = "amx bfloat16"
    elif row["bytes"]:
        level = next((name for name, size in ceilings.SIZES.items() if row["bytes"] <= 2 * size), "DRAM")
        value, unit, ceiling = row["bytes"] / seconds / 1e9, "GB/s", f"copy {level}"
    else:
        return "", ""
    share = f"{100 * value / rows[ceiling][str(threads)]:.0f} %" if ceiling in rows else ""
    return f"{value:.1f} {unit}", share


def show_time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def show_ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def heading() -> str:
    titles = "".join(f"{f'{title} /':>8}" for title in TITLES.values())
    return f"{'':48} {'fastnn':>10} {'speed':>15} {'of max':>6} {'torch':>10}{titles}"


def line(row: dict[str, Any], limits: dict[str, Any], threads: int) -> str:
    speed, share = rate(row, limits, threads)
    cells = f"{row['name']:48.48} {show_time(row['seconds']['fastnn']):>10} {speed:>15} {share:>6}"
    cells += f" {show_time(rival_seconds(row, 'torch')):>10}"
    cells += "".join(f"{show_ratio(ratio(row, rival)):>8}" for rival in TITLES)
    return cells + remark(row)


def remark(row: dict[str, Any]) -> str:
    """What a reader must know: wrong results, and other processes that took part of the machine."""
    text = "".join(f"  {name} IS WRONG ({e:.2g} x)" for name, e in row["errors"].items() if not e <= 1)
    return text + (f"  [{row['foreign_cpus']:.1f} CPUs foreign]" if row["foreign_cpus"] > 0.3 else "")


def groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return found


def spread(rows: list[dict[str, Any]], rival: str) -> tuple[float, float] | None:
    """Geometric mean and minimum of the ratios."""
    ratios = [r for row in rows if (r := ratio(row, rival)) is not None]
    return (math.exp(statistics.fmean(map(math.log, ratios))), min(ratios)) if ratios else None


def _show_spread(values: tuple[float, float] | None) -> str:
    return "-" if values is None else f"{values[0]:.2f} / {values[1]:.2f}"


def _lines_of_groups(rows: list[dict[str, Any]], show: Callable[[list[str]], str]) -> list[str]:
    return [
        show([name, str(len(members)), *(_show_spread(spread(members, rival)) for rival in TITLES)])
        for name, members in groups(rows).items()
    ]


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric mean and minimum of the ratios for each group of rows."""
    show = lambda cells: f"{cells[0]:28}{cells[1]:>6}" + "".join(f"{cell:>16}" for cell in cells[2:])  # noqa: E731
    title = show(["geometric mean / minimum", "rows", *(f"{title} / fastnn" for title in TITLES.values())])
    return "\n".join([title, *_lines_of_groups(rows, show)])


def _markdown(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each row, in the order of the race, then each group's mean and minimum."""
    rows, titles = result["rows"], [f"{title} / fastnn" for title in TITLES.values()]
    lines = [
        f"{result['machine']}; threads: {result['threads']}. Medians; a ratio is the contender's time over fastnn's: "
        "above 1 fastnn is faster. fastnn gets NCHW; torch: the faster of NCHW and channels_last; best: that against "
        "the faster of fastnn's two; tuned: torch with a tuned malloc.",
        "",
        _markdown(["", "fastnn", "speed", "of ceiling", *titles]),
        "|---|---:|---:|---:|" + "---:|" * len(titles),
    ]
    for row in rows:
        speed, share = rate(row, result["ceilings"], result["threads"])
        ratios = [show_ratio(ratio(row, rival)) for rival in TITLES]
        lines.append(_markdown([row["name"] + remark(row), show_time(row["seconds"]["fastnn"]), speed, share, *ratios]))
    lines += ["", _markdown(["geometric mean / minimum", "rows", *titles]), "|---|---:|" + "---:|" * len(titles)]
    return "\n".join([*lines, *_lines_of_groups(rows, _markdown)])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.28 * len(rows)))
    for offset, rival in ((-0.2, "torch"), (0.2, "numpy")):
        pairs = [(i, r) for i, row in enumerate(rows) if (r := ratio(row, rival)) is not None]
        if pairs:
            bars = [i + offset for i, _ in pairs], [r - 1 for _, r in pairs]
            axes.barh(*bars, 0.38, left=1, label=f"{rival} / fastnn")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time of the rival / time of fastnn (right of 1: fastnn is faster)")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS).read_text())))
