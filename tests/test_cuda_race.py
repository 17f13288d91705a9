"""bench/gpu.py: what it does with rows that fail, hang or are done already; a row of every family on the device."""

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers import gpu

BENCH = Path(__file__).resolve().parents[1] / "bench"

pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="is about bench/, which is not here")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield import_module("gpu")


def measured(row: int) -> dict[str, Any]:
    return {"seconds": {"fastnn": 0.5, "torch": 1.0, "torch best": 0.75}, "errors": {"fastnn": 0.1}, "failures": {}}


def run(
    bench: ModuleType, path: Path, measure: Callable[[int], dict[str, Any]] = measured, **options: Any
) -> list[str]:
    found = bench.race(bench.rows(quick=True)[:4], measure, path, options.pop("seconds", 100), **options)
    return [record["name"] for record in found]


def test_a_race_goes_on_where_it_was(bench: ModuleType, tmp_path: Path) -> None:
    path, names = tmp_path / "race.jsonl", [row.name for row in bench.rows(quick=True)[:4]]

    def stopped(index: int) -> dict[str, Any]:
        if index == 2:
            raise KeyboardInterrupt
        return measured(index)

    with pytest.raises(KeyboardInterrupt):
        run(bench, path, stopped)
    path.write_text(path.read_text() + '{"name": "torn')
    assert list(bench.recorded(path)) == names[:2]
    assert run(bench, path) == names[2:]
    assert list(bench.recorded(path)) == names
    assert run(bench, path) == []
    assert run(bench, path, only=f"^{names[1]}$") == [names[1]]


def test_a_failed_row_is_recorded_and_the_race_goes_on(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "race.jsonl"
    assert len(run(bench, path, lambda index: {"failed": "no"} if index == 1 else measured(index))) == 4
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [bench.wrong(record) for record in records] == [False, True, False, False]
    table = bench.table_of({"device": "a GPU", "torch": "2", "rows": records})
    assert table.count("FAILED") == 1 and "| 2.00 | 1.50 |" in table
    assert bench.wrong({**records[0], "errors": {"fastnn": float("nan")}})


def test_time_that_is_used_up_leaves_rows_to_the_next_race(bench: ModuleType, tmp_path: Path) -> None:
    path, now = tmp_path / "race.jsonl", [0.0]

    def slow(index: int) -> dict[str, Any]:
        now[0] += 30
        return measured(index)

    assert len(run(bench, path, slow, clock=lambda: now[0])) == 2  # a family's limit
    assert len(run(bench, path, slow, seconds=10, clock=lambda: now[0])) == 1
    assert len(run(bench, path, slow, clock=lambda: now[0])) == 1


def test_a_process_that_ends_costs_its_row_alone(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_serve", sys.exit)
    worker = bench.Worker.__new__(bench.Worker)
    worker._settings = ()
    assert worker._start()["failed"].startswith("the process ended with")
    assert worker.measure(0)["failed"].startswith("the process ended with")


@gpu
@pytest.mark.torch
def test_every_family_on_the_device(bench: ModuleType) -> None:
    ready, seen = bench.Bench(alone=True, quick=True), set()
    for row in bench.rows(quick=True):
        if row.family not in seen:
            seen.add(row.family)
            assert not bench.wrong(ready.measure(row)), row.name
    assert seen == set(bench.FAMILIES)
