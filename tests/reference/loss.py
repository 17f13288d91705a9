"""Losses."""

import numpy as np

from reference.elementwise import logsigmoid
from reference.softmax import log_softmax

Array = np.ndarray


def reduced(loss: Array, reduction: str) -> Array:
    return {"none": lambda: loss, "sum": lambda: np.sum(loss), "mean": lambda: np.mean(loss)}[reduction]()


def nll_loss(x: Array, target: Array, weight=None, ignore_index: int = -100, reduction: str = "mean") -> Array:
    """x (N, C, ...), target (N, ...)."""
    weight = np.ones(x.shape[1]) if weight is None else weight
    loss, total = np.zeros(target.shape), 0.0
    for position in np.ndindex(target.shape):
        label = target[position]
        if label == ignore_index:
            continue
        loss[position] = -weight[label] * x[(position[0], label, *position[1:])]
        total += weight[label]
    return loss.sum() / total if reduction == "mean" else reduced(loss, reduction)


def cross_entropy(
    x: Array, target: Array, weight=None, ignore_index: int = -100, reduction="mean", label_smoothing: float = 0.0
) -> Array:
    """Class ids become smoothed probabilities; the mean over ids divides by their weights, over probabilities by N."""
    n_classes = x.shape[1]
    weight = np.ones(n_classes) if weight is None else weight
    if np.issubdtype(target.dtype, np.integer):
        kept = target != ignore_index
        hot = np.moveaxis(np.eye(n_classes)[np.where(kept, target, 0)], -1, 1) * np.expand_dims(kept, 1)
        total = (weight[np.where(kept, target, 0)] * kept).sum()
        smooth = label_smoothing / n_classes * np.expand_dims(kept, 1)
    else:
        hot, total, smooth = target, target.size / n_classes, label_smoothing / n_classes
    p = (1 - label_smoothing) * hot + smooth
    loss = -(p * weight.reshape(1, -1, *[1] * (x.ndim - 2)) * log_softmax(x, 1)).sum(1)
    return loss.sum() / total if reduction == "mean" else reduced(loss, reduction)


def linear_cross_entropy(x, weight, target, bias=None, **options) -> Array:
    logits = x @ weight.T + (0 if bias is None else bias)
    loss = cross_entropy(logits.reshape(-1, len(weight)), target.reshape(-1), **options)
    return loss.reshape(target.shape) if options.get("reduction") == "none" else loss


def huber_loss(x: Array, y: Array, reduction="mean", delta: float = 1.0) -> Array:
    d = np.abs(x - y)
    return reduced(np.where(d <= delta, d * d / 2, delta * (d - delta / 2)), reduction)


def smooth_l1_loss(x: Array, y: Array, reduction="mean", beta: float = 1.0) -> Array:
    d = np.abs(x - y)
    return reduced(np.where(d < beta, d * d / (2 * beta), d - beta / 2), reduction)


def binary_cross_entropy(p: Array, y: Array, weight=None, reduction="mean") -> Array:
    with np.errstate(divide="ignore"):
        loss = -(y * np.maximum(np.log(p), -100) + (1 - y) * np.maximum(np.log(1 - p), -100))
    return reduced(loss if weight is None else weight * loss, reduction)


def binary_cross_entropy_with_logits(x: Array, y: Array, weight=None, reduction="mean", pos_weight=None) -> Array:
    positive = 1.0 if pos_weight is None else pos_weight
    loss = -(positive * y * logsigmoid(x) + (1 - y) * logsigmoid(-x))
    return reduced(loss if weight is None else weight * loss, reduction)


def kl_div(x: Array, y: Array, reduction="mean", log_target: bool = False) -> Array:
    positive = np.where(y > 0, y, 1)
    loss = np.exp(y) * (y - x) if log_target else y * (np.log(positive) - x)
    return loss.sum() / x.shape[0] if reduction == "batchmean" else reduced(loss, reduction)
