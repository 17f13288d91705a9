"""The figures of a race as the table of the README.

python bench/report.py [bench/results/race.json]
"""

import json
import sys
from pathlib import Path
from typing import Any

from run import RESULTS, rate, ratio, show_time, summary


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each row, in the order of the race."""
    lines = [
        f"{result['machine']}; {result['threads']} threads. Ratio: the peer's time over fastnn's.",
        "",
        "| | fastnn | speed | of ceiling | torch | ratio | numpy | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        speed, share = rate(row, result["ceilings"], result["threads"])
        cells = [row["name"], show_time(row["seconds"]["fastnn"]), speed, share]
        for peer in ("torch", "numpy"):
            faster = ratio(row, peer)
            cells += [show_time(row["seconds"].get(peer)), "-" if faster is None else f"{faster:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", summary(result["rows"])])


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS).read_text())))
