"""The slow truth: every operation that numpy lacks, in float64, as a formula or a loop anyone can check."""

import math
from itertools import product

import numpy as np

Array = np.ndarray

erf = np.vectorize(math.erf, otypes=[np.float64])


def round_to_bfloat16(x: Array) -> Array:
    """Nearest bfloat16, ties to even, as float64: the upper 16 bits of the float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(x), np.nan, rounded).astype(np.float64)


# ---- activations ----------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e / (1 + e), 1 / (1 + e))


def logsigmoid(x: Array) -> Array:
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    return np.where(x > 0, x, negative_slope * x)


def elu(x: Array, alpha: float = 1.0) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def selu(x: Array) -> Array:
    return 1.0507009873554804934193349852946 * elu(x, 1.6732632423543772848170429916717)


def celu(x: Array, alpha: float = 1.0) -> Array:
    return np.maximum(x, 0) + np.minimum(alpha * np.expm1(np.minimum(x, 0) / alpha), 0)


def gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return np.where(beta * x > threshold, x, np.log1p(np.exp(np.minimum(beta * x, threshold))) / beta)


def mish(x: Array) -> Array:
    return x * np.tanh(np.logaddexp(0, x))


def hardsigmoid(x: Array) -> Array:
    return np.clip(x / 6 + 0.5, 0, 1)


# ---- reductions -----------------------------------------------------------------------------------


def logsumexp(x: Array, axis: int, keepdims: bool = False) -> Array:
    top = np.max(x, axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    y = np.log(np.sum(np.exp(x - top), axis, keepdims=True)) + top
    return y if keepdims else np.squeeze(y, axis)


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - np.max(x, axis, keepdims=True))
    return e / np.sum(e, axis, keepdims=True)


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """softmax(scale Q K^T + mask) V; a row without keys is 0."""
    if enable_gqa:
        k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = np.tri(q.shape[-2], k.shape[-2], dtype=bool)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    highest = np.max(scores, -1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    total = np.sum(weights, -1, keepdims=True)
    return weights / np.where(total == 0, 1, total) @ v


def log_softmax(x: Array, axis: int) -> Array:
    return x - logsumexp(x, axis, keepdims=True)


def norm(x: Array, p: float = 2, axis: int | None = None, keepdims: bool = False) -> Array:
    magnitude = np.abs(x)
    if p == math.inf:
        return np.max(magnitude, axis, keepdims=keepdims)
    if p == -math.inf:
        return np.min(magnitude, axis, keepdims=keepdims)
    if p == 0:
        return np.sum(magnitude != 0, axis, keepdims=keepdims).astype(np.float64)
    return np.sum(magnitude**p, axis, keepdims=keepdims) ** (1 / p)


# ---- convolution and pooling: loops over output positions ------------------------------------------


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def conv2d(x: Array, w: Array, b: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1) -> Array:
    """y[n, o, i, j] = b[o] + sum over c, p, q of w[o, c, p, q] x[n, group(o) + c, i s + p d - pad, ...]."""
    (n, _, _, _), (n_out, n_in, kh, kw) = x.shape, w.shape
    (sh, sw), (dh, dw) = _pair(stride), _pair(dilation)
    if padding == "same":
        amounts = [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for d, k in ((dh, kh), (dw, kw))]
    else:
        amounts = [(p, p) for p in _pair(0 if padding == "valid" else padding)]
    x = np.pad(x, ((0, 0), (0, 0), *amounts))
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((n, n_out, height, width)) if b is None else np.tile(b.reshape(1, -1, 1, 1), (n, 1, height, width))
    for o, p, q in product(range(n_out), range(kh), range(kw)):
        first = o // (n_out // groups) * n_in
        rows = slice(p * dh, p * dh + (height - 1) * sh + 1, sh)
        columns = slice(q * dw, q * dw + (width - 1) * sw + 1, sw)
        for c in range(n_in):
            y[:, o] += w[o, c, p, q] * x[:, first + c, rows, columns]
    return y


def conv1d(x: Array, w: Array, b: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1) -> Array:
    step, rate = np.atleast_1d(stride)[0], np.atleast_1d(dilation)[0]
    pad = padding if isinstance(padding, str) else (0, int(np.atleast_1d(padding)[0]))
    return conv2d(x[:, :, None], w[:, :, None], b, (1, int(step)), pad, (1, int(rate)), groups)[:, :, 0]


def _triple(value: int | tuple[int, ...]) -> list[int]:
    return [int(v) for v in np.broadcast_to(value, 3)]


def conv3d(x: Array, w: Array, b: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1) -> Array:
    """The sum over the kernel's depth taps of the 2-D convolutions of the slices under them."""
    (sd, *stride), (dd, *dilation) = _triple(stride), _triple(dilation)
    reach = dd * (w.shape[2] - 1)
    if isinstance(padding, str):
        around = (reach // 2, reach - reach // 2) if padding == "same" else (0, 0)
    else:
        first, *padding = _triple(padding)
        around, padding = (first, first), tuple(padding)
    x = np.pad(x, ((0, 0), (0, 0), around, (0, 0), (0, 0)))
    slices = []
    for position in range(0, x.shape[2] - reach, sd):
        taps = [
            conv2d(x[:, :, position + t * dd], w[:, :, t], None, stride, padding, dilation, groups)
            for t in range(w.shape[2])
        ]
        slices.append(sum(taps) + (0 if b is None else b.reshape(-1, 1, 1)))
    return np.stack(slices, 2)


def conv_transpose2d(
    x: Array, w: Array, b: Array | None = None, stride=1, padding=0, output_padding=0, groups: int = 1, dilation=1
) -> Array:
    """Every pixel, times the kernel, is added to y around its own place: at i s + p d - pad."""
    (n, n_in, h, w_in), (_, n_out, kh, kw) = x.shape, w.shape
    (sh, sw), (ph, pw), (oh, ow), (dh, dw) = map(_pair, (stride, padding, output_padding, dilation))
    y = np.zeros((n, n_out * groups, (h - 1) * sh + dh * (kh - 1) + 1 + oh, (w_in - 1) * sw + dw * (kw - 1) + 1 + ow))
    for c, i, j, p, q in product(range(n_in), range(h), range(w_in), range(kh), range(kw)):
        first = c // (n_in // groups) * n_out
        y[:, first : first + n_out, i * sh + p * dh, j * sw + q * dw] += np.outer(x[:, c, i, j], w[c, :, p, q])
    y = y[:, :, ph : y.shape[2] - ph, pw : y.shape[3] - pw]
    return y if b is None else y + b.reshape(-1, 1, 1)


def conv_transpose1d(
    x: Array, w: Array, b: Array | None = None, stride=1, padding=0, output_padding=0, groups: int = 1, dilation=1
) -> Array:
    s, p, o, d = (int(np.atleast_1d(v)[0]) for v in (stride, padding, output_padding, dilation))
    return conv_transpose2d(x[:, :, None], w[:, :, None], b, (1, s), (0, p), (0, o), groups, (1, d))[:, :, 0]


def _windows(size: int, kernel: int, stride: int | None, padding: int, dilation: int, ceil_mode: bool) -> list[Array]:
    """The positions of every window along one axis, padding included: they may lie outside [0, size)."""
    stride = stride or kernel
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:  # a last window must not start in the padding
        count -= 1
    return [i * stride - padding + dilation * np.arange(kernel) for i in range(count)]


def _inside(positions: Array, size: int) -> Array:
    return positions[(positions >= 0) & (positions < size)]


def max_pool2d(x: Array, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    (kh, kw), (ph, pw), (dh, dw) = _pair(kernel), _pair(padding), _pair(dilation)
    sh, sw = (None, None) if stride is None else _pair(stride)
    (height, width), lead = x.shape[-2:], x.shape[:-2]
    rows = _windows(height, kh, sh, ph, dh, ceil_mode)
    columns = _windows(width, kw, sw, pw, dw, ceil_mode)
    y, where = np.empty((*lead, len(rows), len(columns))), np.empty((*lead, len(rows), len(columns)), np.int64)
    for i, j in product(range(len(rows)), range(len(columns))):
        r, c = _inside(rows[i], height), _inside(columns[j], width)
        window = x[..., r[:, None], c[None, :]].reshape(*lead, len(r) * len(c))
        best = np.argmax(window, -1)  # the first of equal ones; a NaN wins
        y[..., i, j] = np.take_along_axis(window, best[..., None], -1)[..., 0]
        where[..., i, j] = (r[:, None] * width + c[None, :]).ravel()[best]
    return (y, where) if return_indices else y


def avg_pool2d(
    x: Array, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    (kh, kw), (ph, pw) = _pair(kernel), _pair(padding)
    sh, sw = (None, None) if stride is None else _pair(stride)
    height, width = x.shape[-2:]
    rows, columns = _windows(height, kh, sh, ph, 1, ceil_mode), _windows(width, kw, sw, pw, 1, ceil_mode)
    y = np.empty((*x.shape[:-2], len(rows), len(columns)))
    for i, j in product(range(len(rows)), range(len(columns))):
        r, c = _inside(rows[i], height), _inside(columns[j], width)
        # Padding counts, but not what a last window of ceil_mode has beyond the padding.
        padded = np.sum(rows[i] < height + ph) * np.sum(columns[j] < width + pw)
        count = divisor_override or (padded if count_include_pad else len(r) * len(c))
        y[..., i, j] = x[..., r[:, None], c[None, :]].sum((-2, -1)) / count
    return y


def _adaptive_window(i: int, size: int, out: int) -> Array:
    return np.arange(i * size // out, -(-(i + 1) * size // out))


def adaptive_pool2d(x: Array, output_size, reduce=np.mean) -> Array:
    oh, ow = _pair(output_size)
    height, width = x.shape[-2:]
    y = np.empty((*x.shape[:-2], oh, ow))
    for i, j in product(range(oh), range(ow)):
        r, c = _adaptive_window(i, height, oh), _adaptive_window(j, width, ow)
        y[..., i, j] = reduce(x[..., r[:, None], c], axis=(-2, -1))
    return y


def adaptive_max_pool2d(x: Array, output_size) -> tuple[Array, Array]:
    """Values, and the positions of the first maxima in their planes."""
    (oh, ow), (height, width) = _pair(output_size), x.shape[-2:]
    y, where = adaptive_pool2d(x, output_size, np.max), np.empty((*x.shape[:-2], oh, ow), np.int64)
    for i, j in product(range(oh), range(ow)):
        r, c = _adaptive_window(i, height, oh), _adaptive_window(j, width, ow)
        best = np.argmax(x[..., r[:, None], c].reshape(*x.shape[:-2], len(r) * len(c)), -1)
        where[..., i, j] = (r[:, None] * width + c).ravel()[best]
    return y, where


def in_one_dimension(pool):
    """A pooling over (N, C, L) as one over (N, C, 1, L)."""

    def pool1d(x: Array, size, stride=None, padding=0, *rest, **options):
        pad = (0, padding)
        y = pool(x[..., None, :], (1, size), None if stride is None else (1, stride), pad, *rest, **options)
        return tuple(part[..., 0, :] for part in y) if isinstance(y, tuple) else y[..., 0, :]

    return pool1d


def _triple(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def _over_volumes(x: Array, axes: list[list[Array]], reduce) -> tuple[Array, Array]:
    """reduce(window) for every window; and the flat position of its first maximum in the volume."""
    shape = (*x.shape[:-3], *map(len, axes))
    y, where = np.empty(shape), np.empty(shape, np.int64)
    for i, j, k in product(*(range(len(windows)) for windows in axes)):
        inside = [_inside(w[n], size) for w, n, size in zip(axes, (i, j, k), x.shape[-3:], strict=True)]
        grid = np.ravel_multi_index(np.meshgrid(*inside, indexing="ij"), x.shape[-3:]).ravel()
        window = x.reshape(*x.shape[:-3], int(np.prod(x.shape[-3:])))[..., grid]
        y[..., i, j, k] = reduce(window, axis=-1) if grid.size else -np.inf
        where[..., i, j, k] = grid[np.argmax(window, -1)] if grid.size else -1
    return y, where


def max_pool3d(x: Array, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    strides = (None,) * 3 if stride is None else _triple(stride)
    options = zip(x.shape[-3:], _triple(kernel), strides, _triple(padding), _triple(dilation), strict=True)
    y, where = _over_volumes(x, [_windows(*option, ceil_mode) for option in options], np.max)
    return (y, where) if return_indices else y


def avg_pool3d(
    x: Array, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    strides, pads = (None,) * 3 if stride is None else _triple(stride), _triple(padding)
    options = zip(x.shape[-3:], _triple(kernel), strides, pads, strict=True)
    axes = [_windows(*option, 1, ceil_mode) for option in options]
    sums, _ = _over_volumes(x, axes, np.sum)
    if divisor_override:
        return sums / divisor_override
    # Padding counts, but not what a last window of ceil_mode has beyond the padding.
    counts = [
        [np.sum((w >= (-p if count_include_pad else 0)) & (w < n + (p if count_include_pad else 0))) for w in windows]
        for windows, p, n in zip(axes, pads, x.shape[-3:], strict=True)
    ]
    return sums / np.einsum("i,j,k->ijk", *counts)


def _adaptive_axes(x: Array, output_size) -> list[list[Array]]:
    return [
        [_adaptive_window(i, n, out) for i in range(out)]
        for n, out in zip(x.shape[-3:], _triple(output_size), strict=True)
    ]


def adaptive_pool3d(x: Array, output_size, reduce=np.mean) -> Array:
    return _over_volumes(x, _adaptive_axes(x, output_size), reduce)[0]


def adaptive_max_pool3d(x: Array, output_size) -> tuple[Array, Array]:
    return _over_volumes(x, _adaptive_axes(x, output_size), np.max)


# ---- normalization --------------------------------------------------------------------------------


def channel_statistics(x: Array) -> tuple[Array, Array, int]:
    """Mean, variance and number of values of each channel of (N, C, ...)."""
    rows = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    return rows.mean(1), rows.var(1), rows.shape[1]


def batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> Array:
    if x.size == 0:
        return x
    mean, var = channel_statistics(x)[:2] if training else (running_mean, running_var)
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = (x - mean.reshape(shape)) / np.sqrt(var + eps).reshape(shape)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def batch_norm_running(x, running_mean, running_var, momentum=0.1) -> tuple[Array, Array]:
    """The running statistics after a training step: the variance over n - 1."""
    mean, var, n = channel_statistics(x)
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * var * n / (n - 1),
    )


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5) -> Array:
    axes = tuple(range(-len(normalized_shape), 0))
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rms_norm(x, normalized_shape, weight=None, eps=None) -> Array:
    axes = tuple(range(-len(normalized_shape), 0))
    y = x / np.sqrt((x * x).mean(axes, keepdims=True) + eps)
    return y if weight is None else y * weight


def group_norm(x, groups, weight=None, bias=None, eps=1e-5) -> Array:
    if x.size == 0:
        return x
    rows = x.reshape(x.shape[0], groups, -1)
    y = ((rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + eps)).reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


# ---- losses ---------------------------------------------------------------------------------------


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


# ---- index ----------------------------------------------------------------------------------------


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


# ---- optimizers: one parameter, one step ------------------------------------------------------------


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


# ---- recurrent layers -------------------------------------------------------------------------------


def recurrent(
    cell: str,
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih=None,
    bias_hh=None,
    weight_hr=None,
    h0=None,
    c0=None,
    batch_first: bool = False,
    reverse: bool = False,
    batch_sizes=(),
) -> list[Array]:
    """One layer and direction, a row and a step at a time: [output, h_n], and c_n of an LSTM."""
    gates = {"lstm": 4, "gru": 3, "gru_reset_before": 3}.get(cell, 1)
    hidden, outputs = weight_hh.shape[0] // gates, weight_hh.shape[1]
    bias_ih = np.zeros(gates * hidden) if bias_ih is None else bias_ih
    bias_hh = np.zeros(gates * hidden) if bias_hh is None else bias_hh
    if batch_sizes:
        begins = np.cumsum([0, *batch_sizes])
        places = [[(begins[t] + b,) for t, n in enumerate(batch_sizes) if b < n] for b in range(batch_sizes[0])]
    else:
        n_steps, batch = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
        places = [[(b, t) if batch_first else (t, b) for t in range(n_steps)] for b in range(batch)]
    y = np.zeros((*x.shape[:-1], outputs))
    h_n, c_n = np.zeros((len(places), outputs)), np.zeros((len(places), hidden))
    for b, steps in enumerate(places):
        h = np.zeros(outputs) if h0 is None else h0[b]
        c = np.zeros(hidden) if c0 is None else c0[b]
        for place in reversed(steps) if reverse else steps:
            h, c = _cell(cell, weight_ih @ x[place] + bias_ih, weight_hh, bias_hh, weight_hr, h, c)
            y[place] = h
        h_n[b], c_n[b] = h, c
    return [y, h_n, c_n] if cell == "lstm" else [y, h_n]


def _cell(cell: str, gx: Array, weight_hh: Array, bias_hh: Array, weight_hr, h: Array, c: Array) -> tuple[Array, Array]:
    def sigmoid(v: Array) -> Array:
        return 1 / (1 + np.exp(-v))

    gh = weight_hh @ h + bias_hh
    if cell == "lstm":
        i, f, g, o = np.split(gx + gh, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return (h if weight_hr is None else weight_hr @ h), c
    if cell.startswith("rnn"):
        return (np.tanh(gx + gh) if cell == "rnn_tanh" else np.maximum(gx + gh, 0)), c
    n_units = len(h)
    r, z = np.split(sigmoid((gx + gh)[: 2 * n_units]), 2)
    if cell == "gru":
        n = np.tanh(gx[2 * n_units :] + r * gh[2 * n_units :])
    else:
        n = np.tanh(gx[2 * n_units :] + weight_hh[2 * n_units :] @ (r * h) + bias_hh[2 * n_units :])
    return (1 - z) * n + z * h, c
