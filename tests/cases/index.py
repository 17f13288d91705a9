"""Reading and writing by index: embedding, gather, scatter, masks, and x[...]."""

from typing import Any

import numpy as np

import reference as ref
from cases.case import Case, Values, error, f32, sample

values = Values(8)
n, ids = values.normal, values.integers
F = "nn.functional."
INTS = ("int64", "int32", "uint8", "bool")
OUT = np.array([0, 9, 1])


def _read(key: Any) -> Any:
    return lambda lib, x, *arrays: x[key(*arrays)]


# Basic and advanced keys of a (4, 5, 6) tensor; the arrays are index or mask tensors.
KEYS: dict[str, tuple[Any, list[Any]]] = {
    "int": (lambda: 1, []),
    "negative": (lambda: (-1, -2), []),
    "slice": (lambda: slice(1, 3), []),
    "steps": (lambda: (slice(None, None, 2), slice(1, None, 3)), []),
    "ellipsis": (lambda: (Ellipsis, 2), []),
    "newaxis": (lambda: (None, 1, None, slice(2)), []),
    "empty": (lambda: slice(3, 1), []),
    "ids": (lambda i: i, [ids(0, 4, 7)]),
    "ids 2-D": (lambda i: i, [ids(-4, 4, 3, 2)]),
    "pairs": (lambda i, j: (i, j), [ids(0, 4, 3), ids(0, 5, 3)]),
    "broadcast": (lambda i, j: (i, j), [ids(0, 4, 3, 1), ids(0, 5, 2)]),
    "slice, ids": (lambda i: (slice(None), i), [ids(0, 5, 3)]),
    "ids apart": (lambda i, j: (i, slice(None), j), [ids(0, 4, 3), ids(0, 6, 3)]),
    "mask": (lambda m: m, [values.bools(4, 5, 6)]),
    "mask 1-D": (lambda m: m, [np.array([True, False, True, True])]),
    "mask none": (lambda m: m, [np.zeros((4, 5, 6), bool)]),
    "ids empty": (lambda i: i, [np.zeros(0, np.int64)]),
    "mask, slice, ids": (lambda m, i: (m, slice(1, None, 2), i), [np.array([True, False, True, True]), ids(0, 6, 3)]),
    "slice, mask 2-D": (lambda m: (slice(None), m), [values.bools(5, 6)]),
    "newaxis, ids": (lambda i: (None, i, None, i), [ids(0, 4, 3)]),
}


def _reads() -> list[Case]:
    return [
        Case(
            f"getitem {name}",
            lambda x, *a, key=key: x[key(*a)],
            [sample(n(4, 5, 6), *arrays)],
            call=_read(key),
            exact=True,
            integers=INTS,
        )
        for name, (key, arrays) in KEYS.items()
    ]


def _write(lib: Any, x: Any, value: Any, key: Any, arrays: Any) -> Any:
    y = x.clone()
    y[key(*arrays)] = value
    return y


def _written(x: Any, value: Any, key: Any, arrays: Any) -> Any:
    y = x.copy()
    y[key(*arrays)] = value
    return y


# Writing needs distinct positions: with repeated ones the last writer is not defined.
WRITES = ["int", "negative", "slice", "steps", "ellipsis", "newaxis", "mask", "mask 1-D", "mask none"]
UNIQUE = {
    "ids": (lambda i: i, [np.array([2, 0, 3])]),
    "pairs": (lambda i, j: (i, j), [np.array([0, 1, 3]), np.array([4, 4, 0])]),
    "slice, ids": (lambda i: (slice(None), i), [np.array([3, 1])]),
}


def _writes() -> list[Case]:
    cases = []
    for name, (key, arrays) in {**{k: KEYS[k] for k in WRITES}, **UNIQUE}.items():
        shape = np.zeros((4, 5, 6))[key(*arrays)].shape
        cases.append(
            Case(
                f"setitem {name}",
                lambda x, value, *a, key=key: _written(x, value, key, a),
                [sample(n(4, 5, 6), n(*shape), *arrays), sample(n(4, 5, 6), 2.5, *arrays)],
                call=lambda lib, x, value, *a, key=key: _write(lib, x, value, key, a),
                exact=True,
            )
        )
    return cases


def _index_put(x: Any, indices: Any, value: Any, accumulate: bool) -> Any:
    y = x.copy()
    if accumulate:
        np.add.at(y, tuple(indices), value)
    else:
        y[tuple(indices)] = value
    return y


def _masked_fill(x: Any, mask: Any, value: Any) -> Any:
    return np.where(mask, value, x)


def _index_add(x: Any, dim: int, index: Any, source: Any) -> Any:
    y = np.moveaxis(x.copy(), dim, 0)
    np.add.at(y, index, np.moveaxis(source, dim, 0))
    return np.moveaxis(y, 0, dim)


CASES = [
    Case(
        "embedding",
        lambda i, w, padding_idx=None: w[i],
        [
            sample(ids(0, 9, 7), n(9, 5)),
            sample(ids(0, 9, 3, 4), n(9, 5)),
            sample(ids(0, 9, 7), n(9, 5), padding_idx=None),
            sample(np.zeros((0, 3), np.int64), n(9, 5)),
        ],
        F + "embedding",
        exact=True,
        errors=[
            error(IndexError, r"embedding.*9.*(9|position|1)", OUT, f32(9, 5)),
            error(IndexError, "embedding.*-1", np.array([0, -1]), f32(9, 5)),
            error(TypeError, "embedding.*float32", f32(3), f32(9, 5)),
            error(ValueError, r"embedding.*\(9,\)", OUT, f32(9)),
        ],
        large=lambda: (
            np.random.default_rng(0).integers(0, 997, 20_011),
            np.random.default_rng(0).standard_normal((997, 31)),
        ),
    ),
    Case(
        "gather",
        ref.gather,
        [
            sample(n(4, 5), 0, ids(0, 4, 3, 5)),
            sample(n(4, 5), 1, ids(0, 5, 4, 7)),
            sample(n(4, 5, 3), -1, ids(0, 3, 2, 5, 4)),
            sample(n(4, 5), 1, np.zeros((4, 0), np.int64)),
        ],
        exact=True,
        integers=INTS,
        errors=[
            error(IndexError, "gather.*9.*5", f32(1, 5), 1, OUT[None]),
            error(IndexError, "gather.*-1", f32(1, 5), 1, np.array([[-1]])),
            error(TypeError, "gather.*float32", f32(4, 5), 1, f32(4, 1)),
            error(ValueError, r"gather.*\(4, 5\).*\(3,\)", f32(4, 5), 1, ids(0, 4, 3)),
        ],
    ),
    Case(
        "scatter_add",
        ref.scatter_add,
        [sample(n(4, 5), 0, ids(0, 4, 3, 5), n(3, 5)), sample(n(4, 5), 1, ids(0, 5, 4, 9), n(4, 9))],
        terms=10,
        magnitude=lambda x, d, i, s: ref.scatter_add(np.abs(x), d, i, np.abs(s)),
        integers=("int64",),
        errors=[error(IndexError, "scatter_add.*9.*5", f32(1, 5), 1, OUT[None], f32(1, 3))],
    ),
    Case(
        "scatter",
        ref.scatter,
        [
            sample(n(4, 5), 1, np.array([[0, 3], [1, 0], [4, 2], [2, 1]]), n(4, 2)),
            sample(n(4, 5), 1, np.array([[0, 3], [1, 0], [4, 2], [2, 1]]), 2.5),
        ],
        exact=True,
        errors=[error(IndexError, "scatter.*9.*5", f32(1, 5), 1, OUT[None], f32(1, 3))],
    ),
    Case(
        "index_select",
        lambda x, d, i: np.take(x, i, d),
        [sample(n(4, 5, 3), d, ids(0, 3, 7)) for d in (0, 1, -1)] + [sample(n(4, 5), 0, np.zeros(0, np.int64))],
        exact=True,
        integers=INTS,
        errors=[
            error(IndexError, "index_select.*9.*5", f32(5, 2), 0, OUT),
            error(TypeError, "index_select.*float32", f32(5), 0, f32(2)),
            error(IndexError, "index_select.*-4", f32(2, 3, 4), -4, np.zeros(1, np.int64)),
        ],
    ),
    Case(
        "take_along_dim",
        lambda x, i, d: np.take_along_axis(x, i, d),
        [sample(n(4, 5), ids(0, 5, 4, 3), 1)],
        exact=True,
        errors=[error(IndexError, "(take_along_dim|gather).*9.*5", f32(1, 5), OUT[None], 1)],
    ),
    Case(
        "one_hot",
        lambda i, num_classes=-1: np.eye(num_classes if num_classes > 0 else i.max() + 1, dtype=np.int64)[i],
        [
            sample(ids(0, 5, 7), 6),
            sample(ids(0, 5, 2, 3), 5),
            sample(np.array([0, 3, 1])),
            sample(np.zeros(0, np.int64), 4),
        ],
        F + "one_hot",
        dtypes=("float32",),
        differentiable=False,
        exact=True,
        errors=[
            error(IndexError, "one_hot.*9.*5", OUT, 5),
            error(IndexError, "one_hot.*-1", np.array([0, -1]), 5),
            error(TypeError, "one_hot.*float32", f32(3), 5),
        ],
        torch=True,
    ),
    Case(
        "masked_fill",
        _masked_fill,
        [sample(n(5, 7), values.bools(5, 7), 1.5), sample(n(5, 7), values.bools(5, 1), 0)],
        exact=True,
        inplace=True,
        specials=[sample(n(5, 7), values.bools(7), -np.inf)],
        errors=[error(TypeError, "masked_fill.*int64", f32(3), np.ones(3, np.int64), 1.0)],
    ),
    Case(
        "index_add",
        _index_add,
        [sample(n(4, 5), 0, ids(0, 4, 7), n(7, 5)), sample(n(4, 5), 1, ids(0, 5, 3), n(4, 3))],
        terms=8,
        magnitude=lambda x, d, i, s: _index_add(np.abs(x), d, i, np.abs(s)),
        integers=("int64",),
        errors=[
            error(IndexError, "index_add.*9.*5", f32(5, 2), 0, OUT, f32(3, 2)),
            error(ValueError, r"index_add.*\(2, 2\)", f32(5, 2), 0, OUT % 5, f32(2, 2)),
        ],
    ),
    Case(
        "nonzero",
        lambda x: np.argwhere(x),
        [sample(n(5, 7) * values.bools(5, 7)), sample(np.zeros((3, 2))), sample(n(0, 3))],
        exact=True,
        differentiable=False,
        integers=INTS,
    ),
    Case(
        "masked_select",
        lambda x, m: x[m],
        [sample(n(5, 7), values.bools(5, 7))],
        exact=True,
        errors=[error(TypeError, "masked_select.*int64", f32(3), np.ones(3, np.int64))],
    ),
    Case(
        "index_put",
        _index_put,
        [
            sample(n(4, 5), [ids(0, 4, 9), ids(0, 5, 9)], n(9), True),
            sample(n(4, 5), [ids(0, 4, 3, 1)], n(5), True),
            sample(n(4, 5), [np.array([0, 3]), np.array([1, 1])], n(2), False),
        ],
        terms=10,
        magnitude=lambda x, i, v, a: _index_put(np.abs(x), i, np.abs(v), a),
        integers=("int64",),
        covers=("index_put_",),
        errors=[
            error(IndexError, "index_put.*9.*5", f32(5), [OUT], f32(3)),
            error(ValueError, r"index_put.*\(3,\).*\(4,\)", f32(5), [ids(0, 5, 3)], f32(4)),
            error(TypeError, "index_put.*float32.*int64", np.arange(5), [ids(0, 5, 3)], f32(3)),
        ],
    ),
    *_reads(),
    *_writes(),
    Case(
        "getitem errors",
        lambda x: x[0],
        [sample(n(3))],
        call=lambda lib, x, *key: x[key or 0],
        exact=True,
        errors=[
            error(IndexError, "4.*3", f32(3), 4),
            error(IndexError, "-4.*3", f32(3), -4),
            error(IndexError, "9.*4|9.*size", f32(4), OUT),
            error(IndexError, r"3.*2|too many", f32(2, 2), 0, 0, 0),
            error((IndexError, ValueError), r"\(3,\).*\(4,\)|mask", f32(4), np.ones(3, bool)),
            error((IndexError, TypeError), "float", f32(4), f32(2)),
        ],
    ),
]
