"""Moving values: layouts, casts, joining, padding, views as functions."""

from typing import Any

import numpy as np

from cases.case import BenchRow, Case, Values, error, f32, sample

values = Values(9)
n = values.normal
F = "nn.functional."
INTS = ("int64", "int32", "uint8", "bool")
MEGA = 1 << 20


def _case(name: str, formula: Any, samples: list[Any], **options: Any) -> Case:
    options.setdefault("integers", INTS)
    return Case(name, formula, samples, exact=True, **options)


def _method(name: str) -> Any:
    return lambda lib, x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _pad(x: Any, amounts: Any, mode: str = "constant", value: float = 0.0) -> Any:
    pairs = [tuple(amounts[i : i + 2]) for i in range(0, len(amounts), 2)]
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    if mode != "constant":
        return np.pad(x, widths, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])
    grown = np.pad(x, [(max(a, 0), max(b, 0)) for a, b in widths], constant_values=value)
    return grown[tuple(slice(-min(a, 0), s + min(b, 0)) for (a, b), s in zip(widths, grown.shape, strict=True))]


def _split(x: Any, size: Any, dim: int = 0) -> Any:
    cuts = list(range(size, x.shape[dim], size)) if isinstance(size, int) else list(np.cumsum(size)[:-1])
    return np.split(x, cuts, dim)


def _diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    return np.diagonal(x, offset, dim1, dim2)


def _unfold(x: Any, dim: int, size: int, step: int) -> Any:
    windows = np.lib.stride_tricks.sliding_window_view(x, size, dim)
    return np.take(windows, range(0, windows.shape[dim], step), dim)


X = n(4, 5, 6)
CASES = [
    _case(
        "clone",
        np.copy,
        [sample(n(5, 7)), sample(n()), sample(n(0, 3))],
        call=_method("clone"),
        numpy=np.copy,
        bench=[BenchRow("1M", lambda: (np.random.default_rng(0).standard_normal(MEGA),), bytes=8 * MEGA)],
    ),
    _case("contiguous", np.ascontiguousarray, [sample(n(5, 7))], call=lambda lib, x: x.t().contiguous().t()),
    _case("concat", np.concatenate, [sample([n(2, 3), n(4, 3)], 0)]),
    _case(
        "broadcast_to",
        np.broadcast_to,
        [sample(n(3, 1), (2, 3, 4))],
        errors=[error(ValueError, r"3.*\(3,\)|\(3,\)", f32(3), (4,))],
    ),
    _case(
        "cat",
        np.concatenate,
        [
            sample([n(2, 3), n(4, 3), n(0, 3)], 0),
            sample([n(2, 3, 4), n(2, 1, 4)], 1),
            sample([n(2, 3), n(2, 5)], -1),
            sample([n(3)], 0),
        ],
        large=lambda: ([values.normal(301, 501), values.normal(301, 203)], 1),
        errors=[
            error(ValueError, r"cat.*\(2, 3\).*\(2, 4\)", [f32(2, 3), f32(2, 4)], 0),
            error(ValueError, "cat.*at least one", [], 0),
            error(ValueError, r"cat.*\(2, 3\).*\(3,\)", [f32(2, 3), f32(3)], 0),
            error(IndexError, "cat.*2", [f32(2, 3)], 2),
        ],
    ),
    _case(
        "stack",
        np.stack,
        [sample([n(2, 3), n(2, 3), n(2, 3)], d) for d in (0, 1, -1)] + [sample([n()], 0)],
        errors=[
            error(ValueError, r"stack.*\(2, 3\).*\(2, 4\)", [f32(2, 3), f32(2, 4)], 0),
            error(ValueError, "stack.*at least one", [], 0),
        ],
    ),
    _case(
        "split",
        _split,
        [sample(n(7, 3), 3), sample(n(7, 3), [2, 0, 5]), sample(n(2, 6), 2, dim=1)],
        errors=[error(ValueError, "split.*6.*7", f32(7), [2, 4]), error(ValueError, "split.*0", f32(7), 0)],
    ),
    _case(
        "chunk",
        lambda x, chunks, dim=0: _split(x, -(-x.shape[dim] // chunks), dim),
        [sample(n(7, 3), 3), sample(n(2, 6), 2, dim=1)],
        errors=[error(ValueError, "chunk.*1", f32(7), 0)],
    ),
    _case(
        "unbind",
        lambda x, dim=0: [np.take(x, i, dim) for i in range(x.shape[dim])],
        [sample(n(3, 4)), sample(n(3, 4), 1)],
    ),
    _case(
        "pad",
        _pad,
        [
            sample(n(3, 4), (1, 2)),
            sample(n(3, 4), (1, 0, 2, 1), "constant", 1.5),
            sample(n(3, 6), (-1, -2, 1, 0)),
            sample(n(2, 3, 4), (2, 3), "reflect"),
            sample(n(2, 3, 4, 5), (2, 1, 1, 2), "reflect"),
            sample(n(2, 3, 4), (2, 5), "replicate"),
            sample(n(2, 3, 4), (2, 4), "circular"),
        ],
        path=F + "pad",
        integers=(),
        dtypes=("float32", "float64", "bfloat16"),
        errors=[
            error(ValueError, "pad.*(4|odd|even|pair)", f32(2, 3), (1, 2, 3)),
            error(ValueError, "pad.*'mirror'", f32(2, 3), (1, 1), "mirror"),
            error(ValueError, "pad.*3", f32(2, 2, 3), (3, 0), "reflect"),
            error(ValueError, "pad", f32(2, 3), (-2, -2)),
            error((ValueError, MemoryError), "pad|shape", f32(2, 3), (2**62, 2**62)),
        ],
    ),
    _case(
        "flip",
        lambda x, dims: np.flip(x, dims),
        [sample(X, (0,)), sample(X, (0, 2)), sample(X, (-1,))],
        errors=[error(ValueError, "flip.*twice", f32(2, 3), (0, 0)), error(IndexError, "flip.*2", f32(2, 3), (2,))],
    ),
    _case(
        "roll",
        lambda x, shifts, dims=None: np.roll(x, shifts, dims),
        [sample(X, 3), sample(X, 2, 1), sample(X, (1, -2), (0, 2)), sample(n(0, 3), 1, 0)],
        errors=[error(ValueError, "roll.*", f32(2, 3), (1, 2), (0,))],
    ),
    _case(
        "repeat",
        lambda x, *counts: np.tile(x, counts),
        [sample(n(3), 2), sample(n(2, 3), 2, 1), sample(n(2, 3), 2, 1, 3), sample(n(2, 3), 0, 2)],
        call=_method("repeat"),
        errors=[error(ValueError, "repeat.*-1", f32(3), -1), error(ValueError, r"repeat.*\(2, 3\)", f32(2, 3), 2)],
    ),
    _case(
        "repeat_interleave",
        lambda x, count, dim=None: np.repeat(x, count, dim),
        [sample(n(2, 3), 2, dim=1), sample(n(2, 3), 3, dim=0)],
        errors=[error(ValueError, "repeat_interleave.*-1", f32(3), -1, dim=0)],
    ),
    _case(
        "tril",
        np.tril,
        [sample(n(5, 7)), sample(n(2, 5, 4), 1), sample(n(5, 5), -2)],
        errors=[error(ValueError, r"tril.*\(3,\)", f32(3))],
    ),
    _case(
        "triu",
        np.triu,
        [sample(n(5, 7)), sample(n(2, 5, 4), 1), sample(n(5, 5), -2)],
        errors=[error(ValueError, r"triu.*\(3,\)", f32(3))],
    ),
    _case(
        "reshape",
        np.reshape,
        [sample(X, (20, 6)), sample(X, (-1,)), sample(X, (2, -1, 3)), sample(n(0, 3), (3, 0)), sample(n(), (1, 1))],
        errors=[
            error(ValueError, r"reshape.*120.*\(7, 3\)", f32(4, 5, 6), (7, 3)),
            error(ValueError, r"reshape.*-1", f32(6), (-1, -1)),
            error(ValueError, "reshape.*-2", f32(6), (-2, 3)),
        ],
    ),
    _case(
        "view",
        np.reshape,
        [sample(X, (20, 6)), sample(X, (2, -1, 3))],
        call=_method("view"),
        errors=[error(ValueError, r"view.*120", f32(4, 5, 6), (7, 3))],
    ),
    _case(
        "flatten",
        lambda x, start=0, end=-1: x.reshape(*x.shape[:start], -1, *x.shape[x.ndim if end == -1 else end + 1 :]),
        [sample(X), sample(X, 1), sample(X, 0, 1)],
        errors=[error(ValueError, "flatten.*2.*1", f32(2, 3, 4), 2, 1)],
    ),
    _case(
        "unflatten",
        lambda x, dim, sizes: x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :]),
        [sample(X, 2, (2, 3)), sample(X, 0, (-1, 2))],
        errors=[error(ValueError, "unflatten.*6.*4|unflatten.*", f32(2, 6), 1, (4, 2))],
    ),
    _case(
        "permute",
        np.transpose,
        [sample(X, (2, 0, 1)), sample(X, (0, 1, 2))],
        errors=[
            error(ValueError, "permute.*twice", f32(2, 3), (0, 0)),
            error(ValueError, "permute.*2", f32(2, 3), (0, 1, 2)),
        ],
    ),
    _case(
        "transpose",
        np.swapaxes,
        [sample(X, 0, 2), sample(X, -1, -2)],
        errors=[error(IndexError, "transpose.*-4", f32(2, 3, 4), -4, 0)],
    ),
    _case(
        "movedim",
        np.moveaxis,
        [sample(X, 0, 2), sample(X, (0, 1), (2, 0))],
        errors=[error(ValueError, "movedim", f32(2, 3), (0, 1), (0, 0))],
    ),
    _case(
        "expand",
        lambda x, *shape: np.broadcast_to(
            x, [s if size < 0 else size for s, size in zip((0,) * (len(shape) - x.ndim) + x.shape, shape, strict=True)]
        ),
        [sample(n(3, 1), 3, 4), sample(n(3, 1), 2, -1, 5), sample(n(), 2, 2)],
        call=_method("expand"),
        errors=[
            error(ValueError, r"expand.*3.*4|expand.*\(3,\)", f32(3), 4),
            error(ValueError, "expand.*", f32(2, 3), 3),
        ],
    ),
    _case(
        "squeeze",
        lambda x, dim=None: np.squeeze(
            x, None if dim is None else tuple(d for d in np.atleast_1d(dim) if x.shape[d] == 1)
        ),
        [sample(n(1, 3, 1)), sample(n(1, 3, 1), 0), sample(n(1, 3, 1), 1), sample(n(1, 3, 1), (0, 2))],
        errors=[error(IndexError, "squeeze.*3", f32(2, 3), 3)],
    ),
    _case(
        "unsqueeze",
        np.expand_dims,
        [sample(n(3, 4), d) for d in (0, 1, 2, -1)],
        errors=[error(IndexError, "unsqueeze.*4", f32(2, 3), 4)],
    ),
    _case(
        "narrow",
        lambda x, dim, start, length: np.take(x, range(start, start + length), dim),
        [sample(X, 1, 2, 3), sample(X, 0, 0, 0)],
        errors=[error((ValueError, IndexError), "narrow.*4.*(3|2)", f32(2, 3), 1, 0, 4)],
    ),
    _case(
        "select",
        lambda x, dim, index: np.take(x, index, dim),
        [sample(X, 1, 2), sample(X, -1, -1)],
        errors=[error(IndexError, "5.*3", f32(2, 3), 1, 5)],
    ),
    _case(
        "diagonal",
        _diagonal,
        [sample(n(4, 5)), sample(n(4, 5), 1), sample(n(3, 4, 5), -1, 1, 2)],
        errors=[error(ValueError, r"diagonal.*\(3,\)", f32(3))],
    ),
    _case(
        "unfold",
        _unfold,
        [sample(n(3, 9), 1, 3, 2), sample(n(9), 0, 2, 1)],
        call=_method("unfold"),
        errors=[error(ValueError, "unfold.*4.*3", f32(3), 0, 4, 1), error(ValueError, "unfold.*0", f32(3), 0, 2, 0)],
    ),
    _case(
        "t", np.transpose, [sample(n(3, 4)), sample(n(3))], errors=[error(ValueError, r"t.*\(2, 3, 4\)", f32(2, 3, 4))]
    ),
    _case(
        "fill_",
        lambda x, value: np.full_like(x, value),
        [sample(n(3, 4), 2)],
        call=lambda lib, x, value: x.clone().fill_(value),
    ),
    _case("zero_", np.zeros_like, [sample(n(3, 4))], call=lambda lib, x: x.clone().zero_()),
    _case(
        "copy_",
        lambda x, y: np.broadcast_to(y, x.shape),
        [sample(n(3, 4), n(3, 4)), sample(n(3, 4), n(4))],
        call=lambda lib, x, y: x.clone().copy_(y),
        errors=[error(ValueError, r"copy.*\(3, 4\)|copy.*\(5,\)", f32(3, 4), f32(5))],
    ),
    Case(
        "to",
        lambda x: [x.astype(t) for t in ("float64", "int64", "int32")] + [x != 0],
        [sample(n(5, 7) * 9)],
        call=lambda lib, x: [x.to(getattr(lib, t)) for t in ("float64", "int64", "int32", "bool")],
        exact=True,
        integers=("int64", "int32", "bool"),
    ),
    Case("zeros_like", np.zeros_like, [sample(n(3, 4))], exact=True, differentiable=False, integers=INTS),
    Case("ones_like", np.ones_like, [sample(n(3, 4))], exact=True, differentiable=False, integers=INTS),
    Case("full_like", np.full_like, [sample(n(3, 4), 2)], exact=True, differentiable=False, integers=INTS[:3]),
]
