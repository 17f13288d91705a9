"""Softmax and its logarithm."""

import numpy as np

from reference.reduce import logsumexp

Array = np.ndarray


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - np.max(x, axis, keepdims=True))
    return e / np.sum(e, axis, keepdims=True)


def log_softmax(x: Array, axis: int) -> Array:
    return x - logsumexp(x, axis, keepdims=True)
