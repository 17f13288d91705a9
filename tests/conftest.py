"""Set-up of a test run: which references are installed, and a clean state for every test."""

import importlib.util
import os

import pytest

import fastnn

HAS_TORCH = importlib.util.find_spec("torch") is not None
REQUIRED = os.environ.get("FASTNN_REQUIRE_REFERENCES") == "1"
REASON = "torch is not installed: the parity tests are left out (FASTNN_REQUIRE_REFERENCES=1 makes this a failure)"


def pytest_report_header(config: pytest.Config) -> list[str]:
    import fastnn._C as core

    lines = [f"fastnn {fastnn.__version__}: CPU level {core.cpu_level()}, {core.get_num_threads()} threads"]
    return lines if HAS_TORCH else [*lines, REASON]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if HAS_TORCH:
        return
    parity = [item for item in items if "torch" in item.keywords]
    if parity and REQUIRED:
        raise pytest.UsageError(f"FASTNN_REQUIRE_REFERENCES=1, but torch is not installed ({len(parity)} parity tests)")
    config.hook.pytest_deselected(items=parity)
    items[:] = [item for item in items if "torch" not in item.keywords]


@pytest.fixture(autouse=True)
def clean_state():
    """Threads, grad mode and random state as they were."""
    threads = fastnn.get_num_threads()
    fastnn.manual_seed(0)
    yield
    if fastnn.get_num_threads() != threads:
        fastnn.set_num_threads(threads)
    assert fastnn.is_grad_enabled(), "the test left grad mode off"
