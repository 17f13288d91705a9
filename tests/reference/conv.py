"""Convolutions as loops over output positions or input pixels."""

from itertools import product

import numpy as np

Array = np.ndarray


def spread(value: int | tuple[int, ...], n_axes: int) -> list[int]:
    """A number for each axis."""
    return [int(v) for v in np.broadcast_to(value, n_axes)]


def conv2d(x: Array, w: Array, b: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1) -> Array:
    """y[n, o, i, j] = b[o] + sum over c, p, q of w[o, c, p, q] x[n, group(o) + c, i s + p d - pad, ...]."""
    (n, _, _, _), (n_out, n_in, kh, kw) = x.shape, w.shape
    (sh, sw), (dh, dw) = spread(stride, 2), spread(dilation, 2)
    if padding == "same":
        amounts = [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for d, k in ((dh, kh), (dw, kw))]
    else:
        amounts = [(p, p) for p in spread(0 if padding == "valid" else padding, 2)]
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


def conv3d(x: Array, w: Array, b: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1) -> Array:
    """The sum over the kernel's depth taps of the 2-D convolutions of the slices under them."""
    (sd, *stride), (dd, *dilation) = spread(stride, 3), spread(dilation, 3)
    reach = dd * (w.shape[2] - 1)
    if isinstance(padding, str):
        around = (reach // 2, reach - reach // 2) if padding == "same" else (0, 0)
    else:
        first, *padding = spread(padding, 3)
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
    (sh, sw), (ph, pw), (oh, ow), (dh, dw) = (spread(value, 2) for value in (stride, padding, output_padding, dilation))
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
