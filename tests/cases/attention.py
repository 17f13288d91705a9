"""Scaled dot-product attention: causal, masked, biased, grouped, of any lengths and head dimensions."""

from typing import Any

import numpy as np

import reference as ref
from cases.case import BenchRow, Case, Values, error, f32, sample

values = Values(17)
n = values.normal


def _qkv(q: tuple[int, ...], kv: tuple[int, ...], value_dim: int | None = None) -> tuple[Any, ...]:
    return n(*q), n(*kv), n(*kv[:-1], value_dim or kv[-1])


def _plain(lib: Any, q: Any, k: Any, v: Any, mask: Any = None, **options: Any) -> Any:
    return lib.nn.functional.scaled_dot_product_attention(q, k, v, mask, **options)


def _reference(q: Any, k: Any, v: Any, mask: Any = None, **options: Any) -> Any:
    return ref.attention(q, k, v, mask, **options)


def _magnitude(q: Any, k: Any, v: Any, mask: Any = None, **options: Any) -> Any:
    """Errors of the scores, relative to the sums of magnitudes behind them, are those of the exponentials."""
    scale = options.get("scale") or 1 / np.sqrt(q.shape[-1])
    if options.get("enable_gqa"):
        k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    largest = np.max(np.abs(scale * np.abs(q)) @ np.abs(k).swapaxes(-1, -2), initial=0)
    if mask is not None and mask.dtype != bool:
        largest += np.abs(mask).max(initial=0, where=np.isfinite(mask))
    return (1 + largest) * np.max(np.abs(v), -2, keepdims=True, initial=0)


def _mask(*shape: int) -> Any:
    """Random, with a row in which no key takes part."""
    mask = values.bools(*shape)
    mask[..., 1, :] = False
    return mask


def _samples() -> list[Any]:
    return [
        sample(*_qkv((2, 3, 5, 8), (2, 3, 7, 8))),
        sample(*_qkv((2, 3, 5, 8), (2, 3, 7, 8), 6), is_causal=True),
        sample(*_qkv((1, 2, 9, 5), (1, 2, 4, 5)), is_causal=True, scale=0.3),
        sample(*_qkv((2, 2, 5, 8), (2, 2, 7, 8)), _mask(5, 7)),
        sample(*_qkv((2, 2, 5, 8), (2, 2, 7, 8)), values.bools(2, 1, 1, 7) | (np.arange(7) == 0)),
        sample(*_qkv((2, 2, 5, 8), (2, 2, 7, 8)), n(2, 5, 7)),
        sample(*_qkv((2, 2, 5, 8), (2, 2, 7, 8)), n(2, 1, 5, 1)),
        sample(*_qkv((2, 4, 5, 8), (2, 2, 7, 8), 3), enable_gqa=True, is_causal=True),
        sample(*_qkv((2, 4, 5, 8), (2, 1, 7, 8)), enable_gqa=True),
        sample(*_qkv((3, 5, 8), (3, 7, 8))),
        sample(*_qkv((5, 8), (7, 8)), n(5, 7)),
        sample(*_qkv((2, 1, 2, 3, 4), (2, 1, 2, 5, 4))),
        sample(n(2, 3, 5, 4), n(3, 6, 4), n(2, 1, 6, 4)),
        sample(*_qkv((1, 2, 1, 16), (1, 2, 300, 16))),
        sample(*_qkv((2, 6, 1, 18), (2, 2, 530, 18), 35), values.bools(2, 1, 1, 530), enable_gqa=True),
        sample(*_qkv((1, 2, 3, 40), (1, 1, 70, 40), 97), n(2, 3, 70), enable_gqa=True),
        sample(*_qkv((1, 1, 61, 33), (1, 1, 131, 33), 35)),
        sample(*_qkv((1, 1, 150, 16), (1, 1, 150, 16)), is_causal=True),
        sample(*_qkv((1, 1, 2, 130), (1, 1, 3, 130), 257)),
        sample(*_qkv((1, 2, 0, 4), (1, 2, 3, 4))),
        sample(*_qkv((0, 2, 3, 4), (0, 2, 3, 4))),
        sample(*_qkv((1, 2, 3, 4), (1, 2, 0, 4))),
    ]


def _errors() -> list[Any]:
    q, k = f32(2, 3, 5, 8), f32(2, 3, 7, 8)
    return [
        error(ValueError, r"attention.*\(2, 3, 5, 8\).*\(2, 3, 7, 9\).*last", q, f32(2, 3, 7, 9), k),
        error(ValueError, r"attention.*\(2, 3, 7, 8\).*\(2, 3, 6, 8\).*length", q, k, f32(2, 3, 6, 8)),
        error(ValueError, r"attention.*\(4, 3\)", q, f32(4, 3, 7, 8), f32(4, 3, 7, 8)),
        error(ValueError, r"attention.*length, dim.*\(8,\)", f32(8), f32(8), f32(8)),
        error(ValueError, r"attention.*\(2, 3, 5, 7\).*\(5, 6\)", q, k, k, np.ones((5, 6), bool)),
        error(ValueError, r"attention.*attn_mask or is_causal", q, k, k, np.ones((5, 7), bool), is_causal=True),
        error(ValueError, r"attention.*dropout_p.*1.5", q, k, k, dropout_p=1.5),
        error(ValueError, r"attention.*3 heads.*2", q, f32(2, 2, 7, 8), f32(2, 2, 7, 8), enable_gqa=True),
        error(ValueError, r"attention.*enable_gqa", f32(5, 8), f32(7, 8), f32(7, 8), enable_gqa=True),
        error(TypeError, r"attention.*float32.*float64", q, np.ones((2, 3, 7, 8)), k),
        error(TypeError, r"attention.*mask.*int64", q, k, k, np.ones((5, 7), np.int64)),
        error(TypeError, r"attention.*int64", *[np.ones((2, 3, 4, 8), np.int64)] * 3),
    ]


def _large() -> tuple[Any, ...]:
    return _qkv((1, 4, 400, 32), (1, 4, 300, 32))


# (batch, heads, query length, key length, head dimension)
SHAPES = ((1, 12, 1024, 1024, 64), (8, 12, 128, 128, 64), (4, 16, 512, 512, 64), (1, 32, 2048, 2048, 128))


def _row(shape: tuple[int, ...], kind: str, dtype: str, backward: bool) -> BenchRow:
    """Operations, at the least: two products forward, five more backward, half of them under the diagonal."""
    batch, heads, q_len, kv_len, dim = shape
    kv_heads = heads // 4 if kind == "grouped" else heads

    def make() -> tuple[Any, ...]:
        rng = np.random.default_rng(0)
        q = rng.standard_normal((batch, heads, q_len, dim))
        k, v = (rng.standard_normal((batch, kv_heads, kv_len, dim)) for _ in range(2))
        return (q, k, v, rng.integers(0, 4, (q_len, kv_len)) > 0) if kind == "mask" else (q, k, v)

    flops = (10.0 if backward else 4.0) * batch * heads * q_len * kv_len * dim / (2 if kind == "causal" else 1)
    label = f"{kind} B{batch} H{heads} L{q_len} {kv_len} D{dim}"
    options = {"causal": {"is_causal": True}, "grouped": {"enable_gqa": True}}.get(kind, {})
    return BenchRow(label, make, flops, kwargs=options, backward=backward, dtype=dtype, gradients=(0, 1, 2))


def _rows() -> list[BenchRow]:
    directions, dtypes = (False, True), ("float32", "bfloat16")
    rows = [
        _row(shape, kind, dtype, backward)
        for shape in SHAPES
        for kind in ("full", "causal", "mask")
        for dtype in dtypes
        for backward in directions
    ]
    return rows + [_row((1, 32, 1, 2048, 128), kind, dtype, False) for kind in ("full", "grouped") for dtype in dtypes]


CASES = [
    Case(
        "scaled_dot_product_attention",
        _reference,
        _samples(),
        call=_plain,
        terms=lambda q, k, v, *_, **__: q.shape[-1] + k.shape[-2],
        magnitude=_magnitude,
        rounds_within=3,  # the result, which delta is made of, P and dS
        gradient_scale=1,  # dS is a difference, of which the sum over a row is 0
        large=_large,
        errors=_errors(),
        bench=_rows(),
    ),
]
