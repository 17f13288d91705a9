"""New tensors. They take no tensor, so the dtype under test comes as an argument."""

from typing import Any

import numpy as np

from cases.case import Case, error, sample

FLOATS = ("float32",)


def _case(name: str, formula: Any, samples: list[Any], **options: Any) -> Case:
    return Case(
        name, formula, samples, dtypes=FLOATS, differentiable=False, exact=options.pop("exact", True), **options
    )


CASES = [
    _case(
        "zeros",
        np.zeros,
        [sample((2, 3)), sample((0, 2)), sample(())],
        errors=[
            error(ValueError, "-1", (2, -1)),
            error(MemoryError, "", (1 << 40,)),
            error(MemoryError, "", (1 << 62, 4)),
            error((ValueError, MemoryError), "", (1 << 32, 1 << 32)),
        ],
    ),
    _case(
        "ones",
        np.ones,
        [sample((2, 3)), sample((0, 2)), sample(())],
        errors=[error(ValueError, "-1", (2, -1)), error(MemoryError, "", (1 << 40,))],
    ),
    _case("full", np.full, [sample((2, 3), 2.5), sample((), 3.0)], errors=[error(ValueError, "-1", (2, -1), 1.0)]),
    _case(
        "arange",
        np.arange,
        [sample(5), sample(2, 9), sample(2, 9, 3), sample(9, 2, -2), sample(0.0, 1.0, 0.25), sample(3, 3)],
        errors=[
            error(ValueError, "arange.*0", 1, 5, 0),
            error(ValueError, "arange.*-1", 1, 5, -1),
            error(ValueError, "arange.*finite", 0.0, float("inf")),
            error(MemoryError, "", 0, 1 << 60),
        ],
    ),
    _case(
        "linspace",
        np.linspace,
        [sample(0, 1, 5), sample(-2.0, 3.0, 11), sample(1, 2, 1), sample(1, 2, 0)],
        exact=False,
        ulps=4,
        magnitude=lambda a, b, steps: abs(a) + abs(b),
        errors=[error(ValueError, "linspace.*-1", 0, 1, -1)],
    ),
    _case("eye", np.eye, [sample(3), sample(3, 5), sample(0)], errors=[error(ValueError, "-1", -1)]),
]
