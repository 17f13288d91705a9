"""First values for weights. Every function fills its tensor in place, unrecorded, and returns it.

For a weight (out, in, *kernel): fan_in = in * prod(kernel), fan_out = out * prod(kernel).
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

from fastnn import _C
from fastnn._C import Tensor
from fastnn.autograd import no_grad

P = ParamSpec("P")
R = TypeVar("R")

LINEAR = {"linear", "sigmoid", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"}  # of gain 1


def _unrecorded(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with no_grad():
            return function(*args, **kwargs)

    return wrapped


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through a nonlinearity; ``param`` is leaky_relu's slope."""
    if nonlinearity in LINEAR:
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2)
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity == "selu":
        return 3.0 / 4
    raise ValueError(f"calculate_gain: unknown nonlinearity {nonlinearity!r}")


def _fans(tensor: Tensor) -> tuple[int, int]:
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        raise ValueError(f"init: fan in and fan out need at least two dimensions, got shape {shape}")
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def _fan(tensor: Tensor, mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    return max(_fans(tensor)[mode == "fan_out"], 1)  # an empty weight has nothing to scale


@_unrecorded
def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform in [a, b)."""
    return tensor.uniform_(a, b)


@_unrecorded
def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal."""
    return tensor.normal_(mean, std)


@_unrecorded
def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Normal, drawn again until inside [a, b]. ValueError when fewer than 1 % of the draws would be."""
    low, high = (0.5 * math.erf((edge - mean) / (std * math.sqrt(2))) for edge in (a, b))
    if not high - low >= 0.01:
        raise ValueError(
            f"trunc_normal_: [{a}, {b}] holds {100 * (high - low):.3g} % of normal({mean}, {std}), at least 1 % must"
        )
    tensor.normal_(mean, std)
    outside = (tensor < a) | (tensor > b)
    while bool(outside.any()):
        again = _C.empty_like(tensor).normal_(mean, std)
        tensor.copy_(_C.where(outside, again, tensor))
        outside = (tensor < a) | (tensor > b)
    return tensor


@_unrecorded
def constant_(tensor: Tensor, val: float) -> Tensor:
    """All the same."""
    return tensor.fill_(val)


def ones_(tensor: Tensor) -> Tensor:
    """All one."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """All zero."""
    return constant_(tensor, 0.0)


def _fill_from(tensor: Tensor, values: np.ndarray) -> Tensor:
    return tensor.copy_(_C.from_numpy(np.ascontiguousarray(values)).to(tensor.dtype))


@_unrecorded
def eye_(tensor: Tensor) -> Tensor:
    """Ones on the diagonal of a matrix, zeros beside it."""
    if tensor.dim() != 2:
        raise ValueError(f"eye_: a matrix is expected, got shape {tuple(tensor.shape)}")
    return _fill_from(tensor, np.eye(tensor.shape[0], tensor.shape[1]))


@_unrecorded
def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """A convolution weight (out, in, *kernel) that passes the channels through unchanged."""
    shape = tuple(tensor.shape)
    if len(shape) not in (3, 4, 5) or shape[0] % groups:
        raise ValueError(
            f"dirac_: a 1-D, 2-D or 3-D convolution weight divisible by groups={groups} is expected, got {shape}"
        )
    values = np.zeros(shape)
    centre = tuple(size // 2 for size in shape[2:])
    per_group = shape[0] // groups
    for group in range(groups):
        for channel in range(min(per_group, shape[1])):
            values[(group * per_group + channel, channel, *centre)] = 1
    return _fill_from(tensor, values)


@_unrecorded
def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform in +-gain sqrt(6 / (fan_in + fan_out)). Glorot and Bengio 2010, eq. 16."""
    bound = gain * math.sqrt(6 / max(sum(_fans(tensor)), 1))
    return tensor.uniform_(-bound, bound)


@_unrecorded
def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with standard deviation gain sqrt(2 / (fan_in + fan_out)). Glorot and Bengio 2010."""
    return tensor.normal_(0.0, gain * math.sqrt(2 / max(sum(_fans(tensor)), 1)))


@_unrecorded
def kaiming_uniform_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Uniform in +-gain sqrt(3 / fan); ``a`` is leaky_relu's slope. He et al. 2015, eq. 15."""
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3 / _fan(tensor, mode))
    return tensor.uniform_(-bound, bound)


@_unrecorded
def kaiming_normal_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Normal with standard deviation gain / sqrt(fan). He et al. 2015, eq. 14."""
    return tensor.normal_(0.0, calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode)))


@_unrecorded
def fan_in_uniform_(tensor: Tensor, fan_in: int) -> Tensor:
    """Uniform in +-1 / sqrt(fan_in): the first values of a bias."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    return tensor.uniform_(-bound, bound)


@_unrecorded
def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Orthonormal rows or columns, the weight seen as a matrix (out, rest). Saxe et al. 2014."""
    if tensor.dim() < 2:
        raise ValueError(f"orthogonal_: at least two dimensions are expected, got shape {tuple(tensor.shape)}")
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    normal = _C.randn((max(rows, columns), min(rows, columns)), dtype=_C.float64).numpy()
    q, r = np.linalg.qr(normal)
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)  # the sign that makes the distribution uniform
    return _fill_from(tensor, gain * (q.T if rows < columns else q).reshape(tuple(tensor.shape)))
