"""Reading and writing at indices, one element at a time."""

import numpy as np

Array = np.ndarray


def scatter_add(x: Array, axis: int, index: Array, source: Array) -> Array:
    y = x.copy()
    for position in np.ndindex(index.shape):
        target = list(position)
        target[axis] = index[position]
        y[tuple(target)] += source[position]
    return y


def scatter(x: Array, axis: int, index: Array, source: Array | float) -> Array:
    y = x.copy()
    for position in np.ndindex(index.shape):
        target = list(position)
        target[axis] = index[position]
        y[tuple(target)] = source if np.isscalar(source) else source[position]
    return y


def gather(x: Array, axis: int, index: Array) -> Array:
    y = np.empty(index.shape, x.dtype)
    for position in np.ndindex(index.shape):
        source = list(position)
        source[axis] = index[position]
        y[position] = x[tuple(source)]
    return y
