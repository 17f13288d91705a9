"""Attention beyond the table: tiles against vectors, layouts, dropout, modules against torch's, decoding."""

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
import reference
from fastnn import nn
from helpers import passes


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def tensor(array, dtype="float32"):
    return fastnn.from_numpy(array.copy()).to(getattr(fastnn, dtype))


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# Queries, keys, head dimension, value dimension, mask: whole blocks of the kernels and parts of them.
SHAPES = [
    (128, 128, 64, 64, None),
    (100, 77, 40, 72, None),
    (200, 300, 64, 64, "causal"),
    (150, 150, 32, 48, "bool"),
    (130, 260, 100, 20, "bias"),
    (33, 500, 128, 130, "causal"),
    (300, 17, 16, 16, "causal"),
]
# Relative to the whole result. Rounded to bfloat16 (2^-9) or float16 (2^-12) are the inputs of the second product and
# the result; float32 rounds the scores, of size 4, and sums of up to 500 terms.
ACCURACY = {"float32": 4e-6, "bfloat16": 2 * 2.0**-8, "float16": 2 * 2.0**-11}


@pytest.mark.parametrize("dtype", ACCURACY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks(shape, dtype):
    """Results and gradients of several blocks against the same inputs in float64."""
    length, n_keys, dim, value_dim, kind = shape
    q, k, v, weight = arrays(
        (2, 4, length, dim), (2, 2, n_keys, dim), (2, 2, n_keys, value_dim), (2, 4, length, value_dim)
    )
    mask = None
    if kind == "bool":
        mask = np.random.default_rng(1).integers(0, 3, (length, n_keys)) > 0
        mask[3] = False
    elif kind == "bias":
        (mask,) = arrays((4, length, n_keys), seed=1)
        mask[..., 5] = -np.inf

    def run(name):
        leaves = [tensor(x, dtype).to(getattr(fastnn, name)).requires_grad_() for x in (q, k, v)]
        bias = None if mask is None else fastnn.from_numpy(mask)
        if kind == "bias":
            bias = bias.to(getattr(fastnn, dtype)).to(getattr(fastnn, name))
        y = F.scaled_dot_product_attention(*leaves, bias, is_causal=kind == "causal", enable_gqa=True)
        grads = fastnn.autograd.grad(y, leaves, tensor(weight, dtype).to(getattr(fastnn, name)))
        return [x.detach().double().numpy() for x in (y, *grads)]

    for actual, expected in zip(run(dtype), run("float64"), strict=True):
        assert relative(actual, expected) < ACCURACY[dtype]


@pytest.mark.parametrize("scale", [1e-30, 1e30], ids=str)
def test_extreme_values(scale):
    """Float32 that cannot be cut into parts of bfloat16 is computed as float32."""
    q, k, v = arrays((1, 2, 64, 32), (1, 2, 64, 32), (1, 2, 64, 32))
    y = F.scaled_dot_product_attention(tensor(q) * scale, tensor(k) / scale, tensor(v) * scale)
    expected = reference.attention(*(x.astype(np.float64) for x in (q, k, v))) * scale
    assert relative(y.double().numpy(), expected) < ACCURACY["float32"]
    k[0, 0, 5, 3] = np.inf
    y = F.scaled_dot_product_attention(tensor(q), tensor(k), tensor(v))
    assert np.isnan(y.numpy()[0, 0]).any()
    assert np.isfinite(y.numpy()[0, 1]).all()


@pytest.mark.parametrize("size", [0.0, 1.0, 6.0, 30.0], ids=str)
def test_sizes_of_scores(size):
    """bfloat16 whose scores have a small bound needs no maxima: below that bound, beyond it, and a head of each."""
    q, k, v = arrays((1, 2, 160, 64), (1, 2, 200, 64), (1, 2, 200, 64))
    q[0, 0] *= size
    q, k, v = (tensor(x, "bfloat16") for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    for head in range(2):
        assert relative(y[0, head].double().numpy(), expected[0, head].numpy()) < ACCURACY["bfloat16"]


@pytest.mark.parametrize("score", [-35.0, -34.0, 34.0, 35.0, 80.0])
def test_scores_at_their_bound(score):
    """All keys are alike and along the query: their mean, however small or large the exponentials are."""
    q, k = np.full((1, 1, 32, 64), 1.0, np.float32), np.full((1, 1, 48, 64), score / 8, np.float32)
    (v,) = arrays((1, 1, 48, 32))
    q, k, v = (tensor(x, "bfloat16").requires_grad_() for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v)
    mean = v.detach().double().numpy().mean(-2, keepdims=True)
    np.testing.assert_allclose(y.detach().double().numpy(), np.broadcast_to(mean, y.shape), rtol=2.0**-8, atol=1e-3)
    (grad,) = fastnn.autograd.grad(y.sum(), [v])
    np.testing.assert_allclose(grad.double().numpy(), 32 / 48, rtol=2.0**-7)


def test_not_a_number():
    """One in a query is the row's alone, one in a key its head's."""
    q, k, v = (tensor(x, "bfloat16") for x in arrays((1, 2, 48, 32), (1, 2, 40, 32), (1, 2, 40, 32)))
    q[0, 0, 5, 3] = float("nan")
    k[0, 1, 7, 2] = float("inf")
    y = F.scaled_dot_product_attention(q, k, v).float().numpy()
    assert np.isnan(y[0, 0, 5]).all() and np.isfinite(np.delete(y[0, 0], 5, 0)).all()
    assert np.isnan(y[0, 1]).any()


def test_boolean_masks():
    """Broadcast along each axis, in bfloat16; a row without keys is 0."""
    q, k, v = (tensor(x, "bfloat16") for x in arrays((2, 2, 70, 32), (2, 2, 150, 32), (2, 2, 150, 32)))
    rng = np.random.default_rng(2)
    for shape in [(70, 150), (2, 1, 1, 150), (2, 2, 70, 150), (2, 1, 70, 1)]:
        mask = rng.integers(0, 3, shape) > 0
        mask[..., -1, :] &= shape[-2] == 1
        mask = fastnn.from_numpy(mask)
        y = F.scaled_dot_product_attention(q, k, v, mask).double().numpy()
        expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask).numpy()
        assert relative(y, expected) < ACCURACY["bfloat16"]
        empty = ~np.broadcast_to(mask.numpy(), (2, 2, 70, 150)).any(-1)
        assert (y[empty] == 0).all()


def test_layouts():
    """Views of one packed projection are read where they lie, and the heads join again without a copy."""
    (packed,) = arrays((2, 50, 3, 4, 32))
    q, k, v = (tensor(packed)[:, :, i].transpose(1, 2) for i in range(3))
    y = F.scaled_dot_product_attention(q, k, v)
    dense = F.scaled_dot_product_attention(*(x.contiguous() for x in (q, k, v)))
    np.testing.assert_array_equal(y.numpy(), dense.numpy())
    assert y.transpose(1, 2).is_contiguous()
    for dtype in ("float32", "bfloat16"):
        x = tensor(packed, dtype).requires_grad_()
        F.scaled_dot_product_attention(*(x[:, :, i].transpose(1, 2) for i in range(3))).sum().backward()
        assert x.grad.shape == x.shape


def test_dropout():
    """Keeps the mean, is drawn anew each time, and is the same in backward as in forward."""
    q, k, v = (tensor(x).requires_grad_() for x in arrays((1, 2, 96, 16), (1, 2, 80, 16), (1, 2, 80, 16)))

    def call():
        fastnn.manual_seed(3)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.25)

    ones = fastnn.ones_like(v)
    kept = F.scaled_dot_product_attention(q, k, ones, dropout_p=0.25)
    assert abs(kept.mean().item() - 1) < 5 * np.sqrt(0.25 / 0.75 / (2 * 96 * 20))
    assert (F.scaled_dot_product_attention(q, k, v, dropout_p=0.25) - call()).abs().max().item() > 0
    np.testing.assert_array_equal(call().detach().numpy(), call().detach().numpy())
    assert F.scaled_dot_product_attention(q, k, v, dropout_p=1.0).abs().max().item() == 0
    # The result is linear in v, and its slope along a direction of q is the gradient's.
    (dv,) = fastnn.autograd.grad(call().sum(), [v])
    assert abs((dv * v).sum().item() - call().sum().item()) < 1e-3
    q64, k64, v64 = (x.detach().double().requires_grad_() for x in (q, k, v))

    def loss(x):
        fastnn.manual_seed(3)
        return (F.scaled_dot_product_attention(x, k64, v64, dropout_p=0.25) ** 2).sum()

    (dq,) = fastnn.autograd.grad(loss(q64), [q64])
    step = 1e-6 * dq
    slope = (loss(q64.detach() + step) - loss(q64.detach() - step)).item() / 2e-6
    assert abs(slope / (dq * dq).sum().item() - 1) < 1e-6
    y32 = [g.double().numpy() for g in fastnn.autograd.grad((call() ** 2).sum(), [q, k, v])]
    y64 = [g.numpy() for g in fastnn.autograd.grad(loss(q64), [q64, k64, v64])]
    for actual, expected in zip(y32, y64, strict=True):
        assert relative(actual, expected) < 10 * ACCURACY["float32"]


def test_threads_and_levels():
    """The same bits on 1 thread and 3, at every CPU level; one head alone is cut into several tasks."""
    code = """
import sys, numpy as np, fastnn, fastnn.nn.functional as F
rng = np.random.default_rng(0)
for dtype in (fastnn.float32, fastnn.bfloat16):
    for causal in (False, True):
        q, k, v = (fastnn.from_numpy(rng.standard_normal((1, h, 700, 48)).astype(np.float32)).to(dtype).requires_grad_()
                   for h in (2, 1, 1))
        found = []
        for threads in (1, 3):
            fastnn.set_num_threads(threads)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            grads = fastnn.autograd.grad(y, [q, k, v], fastnn.ones_like(y))
            found.append([x.detach().float().numpy() for x in (y, *grads)])
        assert all((a == b).all() for a, b in zip(*found))
        assert all(np.isfinite(x).all() for x in found[0])
"""
    for level in fastnn._C.cpu_levels():
        passes(code, FASTNN_CPU=level)


# ---- modules ------------------------------------------------------------------------------------------


def twins(theirs, ours):
    """torch's module in float64 and ours with its parameters."""
    theirs = theirs.double()
    state = {name: fastnn.from_numpy(value.detach().numpy().copy()) for name, value in theirs.state_dict().items()}
    ours = ours.double()
    ours.load_state_dict(state)
    assert list(ours.state_dict()) == list(state)
    return theirs, ours


def compare(theirs, ours, inputs, call):
    """Results, and the gradients of parameters and inputs."""
    import torch

    outcomes = []
    for lib, module in ((torch, theirs), (fastnn, ours)):
        leaves = [lib.from_numpy(x.astype(np.float64)).requires_grad_() for x in inputs]
        results = [y for y in call(lib, module, *leaves) if y is not None]
        weights = [lib.from_numpy(np.random.default_rng(5).standard_normal(tuple(y.shape))) for y in results]
        sum((y * w).sum() for y, w in zip(results, weights, strict=True)).backward()
        grads = [x.grad for x in leaves] + [p.grad for p in module.parameters()]
        outcomes.append([x.detach().numpy() for x in results + [g for g in grads if g is not None]])
    assert len(outcomes[0]) == len(outcomes[1])
    for expected, actual in zip(*outcomes, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True, "bias": False}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True, "add_zero_attn": True}],
    ids=str,
)
def test_multihead_attention(options):
    import torch

    theirs, ours = twins(torch.nn.MultiheadAttention(12, 3, **options), nn.MultiheadAttention(12, 3, **options))
    n, length, n_keys = 2, 4, 5
    order = (lambda *s: s) if options.get("batch_first") else (lambda a, b, c: (b, a, c))
    inputs = arrays(
        order(n, length, 12), order(n, n_keys, options.get("kdim", 12)), order(n, n_keys, options.get("vdim", 12))
    )
    padding = np.array([[False, False, True, False, False], [False, False, False, False, True]])
    masks = [np.triu(np.ones((length, n_keys), bool), 2), *arrays((n * 3, length, n_keys))]
    for mask in (None, *masks):
        for pad in (None, padding):
            for weights in (True, False):

                def call(lib, module, q, k, v, mask=mask, pad=pad, weights=weights):
                    made = None if mask is None else lib.from_numpy(mask)
                    pads = None if pad is None else lib.from_numpy(pad)
                    if pads is not None and made is not None and mask.dtype != bool:
                        made, pads = made.to(lib.float64), lib.from_numpy(np.where(pad, -np.inf, 0.0))
                    made = made if made is None or mask.dtype == bool else made.to(lib.float64)
                    return module(q, k, v, pads, weights, made, average_attn_weights=pad is None)

                compare(theirs, ours, inputs, call)
    if options.get("batch_first"):
        single = arrays((length, 12), (n_keys, 12), (n_keys, 12))
        compare(theirs, ours, single, lambda lib, module, q, k, v: module(q, k, v))


def test_multihead_attention_causal():
    """is_causal alone, with and without padding and weights, is the triangular mask."""
    module = nn.MultiheadAttention(16, 2, batch_first=True)
    x = tensor(arrays((2, 7, 16))[0])
    later = fastnn.ones(7, 7, dtype=fastnn.bool).triu(1)
    padding = fastnn.from_numpy(np.arange(14).reshape(2, 7) == 13)
    for pad in (None, padding):
        expected = module(x, x, x, pad, attn_mask=later)[0].detach().numpy()
        for weights in (True, False):
            y = module(x, x, x, pad, weights, is_causal=True)[0]
            np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_multihead_attention_errors():
    with pytest.raises(ValueError, match="multiple of num_heads, got 10 and 3"):
        nn.MultiheadAttention(10, 3)
    module, x = nn.MultiheadAttention(8, 2), fastnn.ones(3, 2, 8)
    with pytest.raises(ValueError, match=r"attn_mask of shape \(3, 3\).*\(4, 3, 3\).*\(3, 4\)"):
        module(x, x, x, attn_mask=fastnn.ones(3, 4))
    with pytest.raises(ValueError, match=r"key_padding_mask of shape \(2, 3\).*\(3, 3\)"):
        module(x, x, x, fastnn.ones(3, 3))
    with pytest.raises(TypeError, match=r"bool or floating attn_mask.*int64"):
        module(x, x, x, attn_mask=fastnn.ones(3, 3, dtype=fastnn.int64))
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        module(x, x[0], x)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer(norm_first, activation):
    """A whole Transformer: the encoder, the decoder, masks, state_dict keys."""
    import torch

    options = {"dropout": 0.0, "norm_first": norm_first, "activation": activation, "batch_first": norm_first}
    sizes = (8, 2, 2, 1, 12)
    theirs, ours = twins(torch.nn.Transformer(*sizes, **options), nn.Transformer(*sizes, **options))
    inputs = arrays((3, 5, 8), (3, 4, 8)) if norm_first else arrays((5, 3, 8), (4, 3, 8))
    padding = np.zeros((3, 5), bool)
    padding[1, 4] = True

    def call(lib, module, src, tgt):
        mask = lib.ones(4, 4, dtype=lib.bool).triu(1)
        pad = lib.from_numpy(padding)
        return [module(src, tgt, tgt_mask=mask, src_key_padding_mask=pad, memory_key_padding_mask=pad)]

    compare(theirs, ours, inputs, call)
    square = nn.Transformer.generate_square_subsequent_mask(3).numpy()
    np.testing.assert_array_equal(square, torch.nn.Transformer.generate_square_subsequent_mask(3).numpy())


def test_transformer_trains_in_small_types():
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation=F.silu, batch_first=True, dtype=fastnn.bfloat16)
    x = tensor(arrays((2, 20, 32))[0], "bfloat16")
    layer(x, is_causal=True).float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.float().isfinite().all()) for p in layer.parameters())
    with pytest.raises(ValueError, match="'relu', 'gelu' or a function, got 'sin'"):
        nn.TransformerEncoderLayer(32, 4, activation="sin")


def test_positional_encoding():
    encoding = nn.SinusoidalPositionalEncoding(7, dropout=0.0, max_len=20)
    pe = encoding(fastnn.zeros(20, 1, 7)).numpy()[:, 0]
    t, i = np.arange(20)[:, None], np.arange(7)[None]
    angle = t / 10000.0 ** (i // 2 * 2 / 7)
    np.testing.assert_allclose(pe, np.where(i % 2, np.cos(angle), np.sin(angle)), atol=1e-6)
    np.testing.assert_array_equal(encoding(fastnn.zeros(3, 1, 7), offset=5).numpy()[:, 0], pe[5:8])
    with pytest.raises(ValueError, match="at most 20 positions"):
        encoding(fastnn.zeros(21, 1, 7))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved):
    """A rotation of pairs as complex numbers; products depend on distances."""
    rotary = nn.RotaryEmbedding(8, interleaved=interleaved)
    (x,) = arrays((2, 3, 10, 8))
    pairs = x.reshape(2, 3, 10, 4, 2) if interleaved else np.stack([x[..., :4], x[..., 4:]], -1)
    angle = np.arange(10)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
    both = [turned.real, turned.imag]
    expected = np.stack(both, -1).reshape(x.shape) if interleaved else np.concatenate(both, -1)
    np.testing.assert_allclose(rotary(tensor(x)).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(rotary(tensor(x[:, :, 4:6]), offset=4).numpy(), expected[:, :, 4:6], atol=1e-5)
    leaf = tensor(x).double().requires_grad_()
    assert fastnn.autograd.gradcheck(rotary, (leaf[:1, :1, :3],))
    with pytest.raises(ValueError, match="even dim, got 7"):
        nn.RotaryEmbedding(7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding(dtype):
    """One position at a time through a cache gives what the whole sequence gives."""
    q, k, v = (tensor(x, dtype) for x in arrays((2, 4, 70, 32), (2, 2, 70, 32), (2, 2, 70, 24)))
    rotary = nn.RotaryEmbedding(32)
    whole = F.scaled_dot_product_attention(rotary(q), rotary(k), v, is_causal=True, enable_gqa=True)
    cache = nn.KVCache(2, 2, 70, 32, 24, dtype=getattr(fastnn, dtype))
    steps = []
    for begin, end in [(0, 40), *((t, t + 1) for t in range(40, 70))]:
        keys, values = cache.update(rotary(k[:, :, begin:end], begin), v[:, :, begin:end])
        query = rotary(q[:, :, begin:end], begin)
        steps.append(F.scaled_dot_product_attention(query, keys, values, is_causal=begin == 0, enable_gqa=True))
    assert relative(fastnn.cat(steps, 2).double().numpy(), whole.double().numpy()) < ACCURACY[dtype]
    with pytest.raises(ValueError, match="71 positions do not fit into the 70"):
        cache.update(k[:, :, :1], v[:, :, :1])
    cache.reset()
    assert cache.update(k[:, :, :3], v[:, :, :3])[0].shape == (2, 2, 3, 32)
