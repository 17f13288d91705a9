"""Attention on CUDA beyond the table: tiles and parts of them, masks, dropout, decoding, against the CPU in float64."""

from typing import Any

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from helpers import gpu

# Batch, heads, key and value heads, queries, keys, head dimension, value dimension, mask.
SHAPES = [
    (1, 2, 1, 130, 70, 64, 64, None),
    (2, 2, 1, 70, 90, 40, 24, "causal"),
    (1, 1, 1, 66, 131, 128, 100, "bias"),
    (1, 2, 2, 67, 68, 33, 35, "bool"),
    (1, 1, 1, 50, 65, 136, 256, "causal"),
    (1, 2, 1, 20, 30, 16, 16, "padding"),
    (1, 1, 1, 5, 70, 20, 300, None),
]
# Relative to the whole result. Rounded to bfloat16 (2^-9) or float16 (2^-12) are the inputs of the second product and
# the result; float32 rounds the scores, of size 4, and sums of up to 500 terms.
ACCURACY = {"float64": 1e-14, "float32": 4e-6, "bfloat16": 2 * 2.0**-8, "float16": 2 * 2.0**-11}


def inputs(shape: tuple[Any, ...], dtype: str) -> tuple[list[Any], Any, Any]:
    """Leaves, mask and the gradient of the result, on the CPU, of numbers that the dtype holds."""
    batch, heads, kv_heads, n_queries, n_keys, dim, value_dim, kind = shape
    rng = np.random.default_rng(0)

    def normal(*sizes: int) -> Any:
        return fastnn.from_numpy(rng.standard_normal(sizes)).to(getattr(fastnn, dtype))

    leaves = [
        normal(batch, heads, n_queries, dim),
        normal(batch, kv_heads, n_keys, dim),
        normal(batch, kv_heads, n_keys, value_dim),
    ]
    mask = None
    if kind == "bool":
        allowed = rng.integers(0, 3, (n_queries, n_keys)) > 0
        allowed[min(3, n_queries) :: 4] = False
        mask = fastnn.from_numpy(allowed)
    elif kind == "padding":
        mask = fastnn.from_numpy(np.arange(n_keys) < n_keys - 5)[None, None, None]
    elif kind == "bias":
        mask = normal(batch, heads, n_queries, n_keys)
        leaves.append(mask)
    return leaves, mask, normal(batch, heads, n_queries, value_dim)


def attend(leaves: list[Any], mask: Any, weight: Any, device: str, dtype: str, **options: Any) -> list[Any]:
    """The result and the gradients of the leaves."""
    to = {"device": device, "dtype": getattr(fastnn, dtype)}
    leaves = [x.to(**to).detach().clone().requires_grad_() for x in leaves]
    bias = leaves[3] if len(leaves) > 3 else None if mask is None else mask.to(device)
    fastnn.manual_seed(3)
    y = F.scaled_dot_product_attention(*leaves[:3], bias, enable_gqa=True, **options)
    grads = fastnn.autograd.grad(y, leaves, weight.to(**to))
    return [x.detach().cpu().double().numpy() for x in (y, *grads)]


def check_against_cpu(shape: tuple[Any, ...], dtype: str, **options: Any) -> None:
    leaves, mask, weight = inputs(shape, dtype)
    options["is_causal"] = shape[-1] == "causal"
    expected = attend(leaves, mask, weight, "cpu", "float64", **options)
    actual = attend(leaves, mask, weight, "cuda", dtype, **options)
    for name, got, want in zip(["out", "dq", "dk", "dv", "dmask"], actual, expected, strict=False):
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error < ACCURACY[dtype], f"{name}: {error}"


@gpu
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles(shape: tuple[Any, ...], dtype: str) -> None:
    """Results and gradients of whole tiles and parts of them."""
    check_against_cpu(shape, dtype)


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [None, "causal"])
def test_dropout(kind: str | None, dtype: str) -> None:
    """The same probabilities are left out as on the CPU, forward and backward."""
    check_against_cpu((1, 2, 1, 70, 75, 32, 32, kind), dtype, dropout_p=0.25)


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 1, 1, 1, 300, 64, 64, None),
        (1, 6, 1, 1, 257, 128, 100, "bool"),
        (1, 2, 1, 3, 400, 33, 130, "bias"),
    ],
    ids=str,
)
def test_decode(shape: tuple[Any, ...], dtype: str) -> None:
    """Few queries: pieces of the keys, joined."""
    check_against_cpu(shape, dtype)
