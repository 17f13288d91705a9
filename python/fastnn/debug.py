"""Debug mode: checks too slow or too opinionated for every call, off unless asked for.

It is on under ``python -X dev`` and after ``fastnn.set_debug(True)``.
"""

import sys

_enabled = sys.flags.dev_mode


def set_debug(enabled: bool) -> None:
    """Turns debug mode on or off for the whole process."""
    global _enabled
    _enabled = bool(enabled)


def is_debug() -> bool:
    """Whether debug mode is on."""
    return _enabled
