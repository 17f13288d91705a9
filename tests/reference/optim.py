"""Optimizers: one parameter, one step."""

import numpy as np

Array = np.ndarray


def _moments(g, m, v, beta1, beta2):
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g


def _adam(p, g, m, v, beta1, beta2, lr, eps, t):
    m, v = _moments(g, m, v, beta1, beta2)
    return p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps), m, v


def _amsgrad(p, g, m, v, v_max, beta1, beta2, lr, eps, t):
    m, v = _moments(g, m, v, beta1, beta2)
    v_max = np.maximum(v_max, v)
    return p - lr * (m / (1 - beta1**t)) / (np.sqrt(v_max / (1 - beta2**t)) + eps), m, v, v_max


def _nadam(p, g, m, v, beta1, beta2, of_g, of_m, eps, t):
    m, v = _moments(g, m, v, beta1, beta2)
    return p - (of_g * g + of_m * m) / (np.sqrt(v / (1 - beta2**t)) + eps), m, v


def _radam(p, g, m, v, beta1, beta2, lr, eps, t):
    """Liu et al. 2020, algorithm 2, with eps added to the root of the uncorrected v, as PyTorch does."""
    m, v = _moments(g, m, v, beta1, beta2)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    direction = m / (1 - beta1**t)
    if length > 5:
        ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        direction = direction * np.sqrt(ratio) * np.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)
    return p - lr * direction, m, v


def _adamax(p, g, m, u, beta1, beta2, lr, eps, t):
    m, u = beta1 * m + (1 - beta1) * g, np.maximum(beta2 * u, np.abs(g) + eps)
    return p - lr / (1 - beta1**t) * m / u, m, u


def _momentum(p, g, buffer, lr, momentum, kept, fresh):
    buffer = kept * buffer + fresh * g
    return p - lr * buffer, buffer


def _nesterov(p, g, buffer, lr, momentum, kept, fresh):
    buffer = kept * buffer + fresh * g
    return p - lr * (g + momentum * buffer), buffer


def _rmsprop(p, g, v, alpha, lr, eps, momentum):
    v = alpha * v + (1 - alpha) * g * g
    return p - lr * g / (np.sqrt(v) + eps), v


def _rmsprop_momentum(p, g, v, buffer, alpha, lr, eps, momentum):
    v = alpha * v + (1 - alpha) * g * g
    buffer = momentum * buffer + g / (np.sqrt(v) + eps)
    return p - lr * buffer, v, buffer


def _rmsprop_centered(p, g, v, mean, alpha, lr, eps, momentum):
    v, mean = alpha * v + (1 - alpha) * g * g, alpha * mean + (1 - alpha) * g
    return p - lr * g / (np.sqrt(v - mean**2) + eps), v, mean


def _rmsprop_centered_momentum(p, g, v, mean, buffer, alpha, lr, eps, momentum):
    v, mean = alpha * v + (1 - alpha) * g * g, alpha * mean + (1 - alpha) * g
    buffer = momentum * buffer + g / (np.sqrt(v - mean**2) + eps)
    return p - lr * buffer, v, mean, buffer


def _adagrad(p, g, total, lr, lr_decay, eps, t):
    total = total + g * g
    return p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(total) + eps), total


def _adadelta(p, g, v, deltas, rho, lr, eps):
    v = rho * v + (1 - rho) * g * g
    delta = np.sqrt(deltas + eps) / np.sqrt(v + eps) * g
    return p - lr * delta, v, rho * deltas + (1 - rho) * delta**2


def _lion(p, g, m, beta1, beta2, lr):
    return p - lr * np.sign(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g


UPDATE_RULES = {
    "descent": lambda p, g, lr: (p - lr * g,),
    "average": lambda p, g, share: ((1 - share) * p + share * g,),
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adam": _adam,
    "amsgrad": _amsgrad,
    "nadam": _nadam,
    "radam": _radam,
    "adamax": _adamax,
    "rmsprop": _rmsprop,
    "rmsprop_momentum": _rmsprop_momentum,
    "rmsprop_centered": _rmsprop_centered,
    "rmsprop_centered_momentum": _rmsprop_centered_momentum,
    "adagrad": _adagrad,
    "adadelta": _adadelta,
    "lion": _lion,
}


COUNTING_RULES = {"adam", "amsgrad", "nadam", "radam", "adamax", "adagrad"}


def optimizer_step(rule, p, g, states, coefficients, weight_decay=0.0, shrink=1.0, maximize=False, step=1):
    """The parameter and its states after one step."""
    p = shrink * p
    g = (-g if maximize else g) + weight_decay * p
    return UPDATE_RULES[rule](p, g, *states, *coefficients, *([step] if rule in COUNTING_RULES else []))
