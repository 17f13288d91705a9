"""The operations of ``fastnn.nn`` as functions: PyTorch's names, argument order and defaults.

A function here only puts its arguments into the form that ``_C`` takes and makes one call. Shapes and dtypes are
checked in C++, next to the formula: ValueError for shapes and settings that do not fit, TypeError for dtypes. Modules
hold ready-made arguments and call ``_C`` themselves. Convolution and pooling, which come in one, two and three
dimensions, stand beside their layers in ``conv.py`` and ``pooling.py``.
"""

import warnings
from collections.abc import Sequence

from fastnn import _C
from fastnn._C import Tensor
from fastnn.debug import is_debug
from fastnn.nn.conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d
from fastnn.nn.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    min_pool1d,
    min_pool2d,
)

# ---- matrix product -------------------------------------------------------------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b. input (..., in), weight (out, in), bias (out) -> (..., out)."""
    return _C.linear(input, weight, bias)


# ---- attention ------------------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale Q K^T + mask) V, fused: the (L, S) matrix is never stored. Vaswani et al. 2017.

    query (..., heads, L, E), key (..., heads, S, E), value (..., heads, S, Ev) -> (..., heads, L, Ev). ``attn_mask``
    broadcasts to (..., heads, L, S): where a boolean one is False the key takes no part, a floating one is added to
    the scores and may require a gradient. ``is_causal``: query i sees the keys up to i. ``scale`` is 1/sqrt(E) unless
    given. ``enable_gqa``: every head of key and value serves several of query. ``dropout_p`` applies as given: pass 0
    in evaluation. A query that sees no key gives 0.

    The result is stored as (..., L, heads, Ev), so that ``transpose(1, 2).flatten(2)`` moves nothing. ValueError for
    shapes that do not fit, and for both ``attn_mask`` and ``is_causal``; TypeError for dtypes that differ.
    """
    return _C.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


# ---- activations ----------------------------------------------------------------------------------


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)."""
    return _C.relu_(input) if inplace else _C.relu(input)


def relu6(input: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return _C.relu6(input)


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x for x > 0, else negative_slope * x."""
    return _C.leaky_relu(input, negative_slope)


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x for x > 0, else alpha (e^x - 1). Clevert et al. 2016."""
    return _C.elu(input, alpha)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """1.0507 elu(x, 1.67326), the constants that keep mean 0 and variance 1. Klambauer et al. 2017."""
    return _C.selu_(input) if inplace else _C.selu(input)


def celu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """max(0, x) + min(0, alpha (e^(x/alpha) - 1)). Barron 2017."""
    return _C.celu(input, alpha)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x), or with "tanh" its approximation. Hendrycks and Gimpel 2016."""
    return _C.gelu(input, approximate)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x), also called swish."""
    return _C.silu_(input) if inplace else _C.silu(input)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x tanh(softplus(x)). Misra 2019."""
    return _C.mish_(input) if inplace else _C.mish(input)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta; x itself where beta x > threshold."""
    return _C.softplus(input, beta, threshold)


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return _C.softsign(input)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return _C.sigmoid(input)


def logsigmoid(input: Tensor) -> Tensor:
    """log sigmoid(x), without overflow."""
    return _C.logsigmoid(input)


def tanh(input: Tensor) -> Tensor:
    """(e^x - e^-x) / (e^x + e^-x)."""
    return _C.tanh(input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x clipped to [min_val, max_val]."""
    return _C.hardtanh(input, min_val, max_val)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6."""
    return _C.hardsigmoid_(input) if inplace else _C.hardsigmoid(input)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x relu6(x + 3) / 6. Howard et al. 2019."""
    return _C.hardswish_(input) if inplace else _C.hardswish(input)


def softmax(input: Tensor, dim: int) -> Tensor:
    """e^x / sum e^x along ``dim``, computed after subtracting the maximum."""
    return _C.softmax(input, dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """log softmax(x) along ``dim``, without overflow."""
    return _C.log_softmax(input, dim)


# ---- dropout, embedding, padding ------------------------------------------------------------------


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zeroes elements with probability p and scales the others by 1 / (1 - p). Srivastava et al. 2014.

    Without ``training`` the input itself. ValueError for a p outside [0, 1].
    """
    return _C.dropout(input, p, training)


def _channel_dropout(input: Tensor, p: float, training: bool, n_axes: int, name: str) -> Tensor:
    if input.dim() != n_axes + 2:
        raise ValueError(f"{name}: a {n_axes + 2}-D input (N, C, ...) is expected, got shape {tuple(input.shape)}")
    if not training:
        return _C.dropout(input, p, False)
    channels = tuple(input.shape[:2]) + (1,) * n_axes
    return input * _C.dropout(_C.ones(channels, dtype=input.dtype, device=input.device), p, True)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Dropout of whole channels of (N, C, L). Tompson et al. 2015."""
    return _channel_dropout(input, p, training, 1, "dropout1d")


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Dropout of whole channels of (N, C, H, W). Tompson et al. 2015."""
    return _channel_dropout(input, p, training, 2, "dropout2d")


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of ``weight`` (V, D) at integer ids (...) -> (..., D). The row ``padding_idx`` gets no gradient.

    IndexError for an id outside the table.
    """
    return _C.embedding(input, weight, -1 if padding_idx is None else checked_padding_idx(padding_idx, weight.shape[0]))


def checked_padding_idx(padding_idx: int, n_rows: int) -> int:
    """A row number from 0; negative ones count from the end."""
    if not -n_rows <= padding_idx < n_rows:
        raise ValueError(f"embedding: padding_idx {padding_idx} is outside a table of {n_rows} rows")
    return padding_idx % n_rows


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Integer ids (...) -> int64 (..., num_classes); -1 takes the largest id plus one. IndexError for ids beyond it."""
    return _C.one_hot(tensor, num_classes)


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Pads the last axes: ``pad`` is (left, right, top, bottom, ...), the last axis first.

    ``mode``: "constant" (of ``value``, 0 when left out; negative amounts cut), "reflect", "replicate" or "circular".
    """
    return _C.pad(input, tuple(pad), mode, 0.0 if value is None else value)


# ---- normalization --------------------------------------------------------------------------------


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, for each channel of (N, C, ...). Ioffe and Szegedy 2015.

    With ``training`` the batch's statistics normalize and the running ones, if given, are updated in place:
    running = (1 - momentum) running + momentum batch. Without, the running ones normalize.
    """
    return _C.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes, of ``normalized_shape``. Ba et al. 2016.

    ``weight`` and ``bias`` have that shape. Statistics are kept in float32 for 16-bit inputs.
    """
    return _C.layer_norm(input, normalized_shape, weight, bias, eps)


def rms_norm(
    input: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axes, of ``normalized_shape``. Zhang and Sennrich 2019.

    Without ``eps``, the machine epsilon of float64 for a float64 input, of float32 otherwise.
    """
    return _C.rms_norm(input, normalized_shape, weight, eps)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalizes each group of channels of each sample of (N, C, ...), then x weight + bias by channel (C,).

    Wu and He 2018. ValueError where the channels do not divide into ``num_groups``.
    """
    return _C.group_norm(input, num_groups, weight, bias, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalizes each channel of each sample of (N, C, ...), then x weight + bias by channel. Ulyanov et al. 2016.

    The running statistics, if given, are updated in place with the mean over the samples; without
    ``use_input_stats`` they normalize.
    """
    if not use_input_stats:
        return _C.batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)
    return _C.instance_norm(input, running_mean, running_var, weight, bias, momentum, eps)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x / max(||x||_p, eps) along ``dim``."""
    return input / input.norm(p, dim, True).clamp(min=eps)


# ---- losses ---------------------------------------------------------------------------------------


def _warn_if_probabilities(input: Tensor) -> None:
    """A softmax before cross_entropy is applied twice: the loss can then not fall below about 1.46 for 10 classes."""
    if input.dim() < 2 or input.numel() == 0 or not input.is_floating_point():
        return
    rows = input.detach().float()
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            "cross_entropy: every row of the input already sums to 1: it takes logits and applies softmax itself; "
            "take the softmax out of the model, or use nll_loss on log-probabilities",
            stacklevel=3,
        )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target]: logits (N, C, ...) with class ids (N, ...), or with probabilities (N, C, ...).

    ``weight`` (C,) scales the loss of each class; with ids "mean" divides by the sum of the weights used. Ids equal to
    ``ignore_index`` do not count. ``label_smoothing`` e in [0, 1] moves the target by e towards the uniform
    distribution (Szegedy et al. 2016). IndexError for an id that is no class.

    In debug mode (``fastnn.set_debug`` or ``python -X dev``) it warns when the rows are probabilities already.
    """
    if is_debug():
        _warn_if_probabilities(input)
    return _C.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    chunk: int = 0,
) -> Tensor:
    """``cross_entropy(linear(input, weight, bias), target)`` without its logits: rows go through in chunks.

    input (..., H), weight (C, H), bias (C,), target (...) of class ids. At most ``chunk`` x C logits are in memory
    (0: about 8 million) instead of one row for each target. With ``reduction`` "mean" or "sum" the gradients are
    computed in the forward, and take the place of input, weight and bias once more; with "none" the backward
    computes the logits again. RuntimeError on a second derivative.
    """
    return _C.linear_cross_entropy(input, weight, target, bias, ignore_index, reduction, label_smoothing, chunk)


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """-input[target]: log-probabilities (N, C, ...) with class ids (N, ...); options as in ``cross_entropy``."""
    return _C.nll_loss(input, target, weight, ignore_index, reduction)


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)^2. The shapes must be equal: (N, 1) against (N,) raises instead of broadcasting to (N, N)."""
    return _C.mse_loss(input, target, reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input - target|, of equal shapes."""
    return _C.l1_loss(input, target, reduction)


def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), d = input - target of equal shapes. Huber 1964."""
    return _C.huber_loss(input, target, reduction, delta)


def smooth_l1_loss(input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, d = input - target of equal shapes. Girshick 2015."""
    return _C.smooth_l1_loss(input, target, reduction, beta)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-(y log p + (1 - y) log(1 - p)), of equal shapes; each logarithm is cut off at -100.

    ``weight`` broadcasts to the shape. ValueError for an input outside [0, 1].
    """
    return _C.binary_cross_entropy(input, target, weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """``binary_cross_entropy(sigmoid(input), target)`` without overflow; ``pos_weight`` scales the positive term."""
    return _C.binary_cross_entropy_with_logits(input, target, weight, reduction, pos_weight)


def kl_div(input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target (log target - input): input holds log-probabilities, target probabilities.

    Of equal shapes. With ``log_target`` the target holds logarithms, too. "batchmean" divides the sum by the batch.
    """
    return _C.kl_div(input, target, reduction, log_target)
