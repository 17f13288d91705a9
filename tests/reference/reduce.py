"""Reductions along an axis."""

import math

import numpy as np

Array = np.ndarray


def logsumexp(x: Array, axis: int, keepdims: bool = False) -> Array:
    top = np.max(x, axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    y = np.log(np.sum(np.exp(x - top), axis, keepdims=True)) + top
    return y if keepdims else np.squeeze(y, axis)


def norm(x: Array, p: float = 2, axis: int | None = None, keepdims: bool = False) -> Array:
    magnitude = np.abs(x)
    if p == math.inf:
        return np.max(magnitude, axis, keepdims=keepdims)
    if p == -math.inf:
        return np.min(magnitude, axis, keepdims=keepdims)
    if p == 0:
        return np.sum(magnitude != 0, axis, keepdims=keepdims).astype(np.float64)
    return np.sum(magnitude**p, axis, keepdims=keepdims) ** (1 / p)
