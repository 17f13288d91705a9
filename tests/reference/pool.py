"""Pooling as loops over output positions."""

from itertools import product

import numpy as np

from reference.conv import spread

Array = np.ndarray


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
    (kh, kw), (ph, pw), (dh, dw) = spread(kernel, 2), spread(padding, 2), spread(dilation, 2)
    sh, sw = (None, None) if stride is None else spread(stride, 2)
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
    (kh, kw), (ph, pw) = spread(kernel, 2), spread(padding, 2)
    sh, sw = (None, None) if stride is None else spread(stride, 2)
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
    oh, ow = spread(output_size, 2)
    height, width = x.shape[-2:]
    y = np.empty((*x.shape[:-2], oh, ow))
    for i, j in product(range(oh), range(ow)):
        r, c = _adaptive_window(i, height, oh), _adaptive_window(j, width, ow)
        y[..., i, j] = reduce(x[..., r[:, None], c], axis=(-2, -1))
    return y


def adaptive_max_pool2d(x: Array, output_size) -> tuple[Array, Array]:
    """Values, and the positions of the first maxima in their planes."""
    (oh, ow), (height, width) = spread(output_size, 2), x.shape[-2:]
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
    strides = (None,) * 3 if stride is None else spread(stride, 3)
    options = zip(x.shape[-3:], spread(kernel, 3), strides, spread(padding, 3), spread(dilation, 3), strict=True)
    y, where = _over_volumes(x, [_windows(*option, ceil_mode) for option in options], np.max)
    return (y, where) if return_indices else y


def avg_pool3d(
    x: Array, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    strides, pads = (None,) * 3 if stride is None else spread(stride, 3), spread(padding, 3)
    options = zip(x.shape[-3:], spread(kernel, 3), strides, pads, strict=True)
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
        for n, out in zip(x.shape[-3:], spread(output_size, 3), strict=True)
    ]


def adaptive_pool3d(x: Array, output_size, reduce=np.mean) -> Array:
    return _over_volumes(x, _adaptive_axes(x, output_size), reduce)[0]


def adaptive_max_pool3d(x: Array, output_size) -> tuple[Array, Array]:
    return _over_volumes(x, _adaptive_axes(x, output_size), np.max)
