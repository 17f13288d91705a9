"""Layers: what they compute, how they start, and how they complain."""

import math
import warnings

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn
from helpers import array

# ---- layers ----------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda n: n.Linear(5, 4), (3, 5)),
    "linear_no_bias": (lambda n: n.Linear(5, 4, bias=False), (2, 3, 5)),
    "conv2d": (lambda n: n.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=(1, 2), groups=2), (2, 4, 9, 11)),
    "conv2d_same": (lambda n: n.Conv2d(2, 3, (3, 4), padding="same", dilation=2), (2, 2, 7, 8)),
    "conv1d": (lambda n: n.Conv1d(4, 6, 3, 2, 1, bias=False), (2, 4, 9)),
    "conv1d_valid": (lambda n: n.Conv1d(2, 2, 3, padding="valid"), (1, 2, 6)),
    "conv3d": (lambda n: n.Conv3d(4, 6, (2, 3, 3), stride=2, padding=1, groups=2), (2, 4, 5, 6, 7)),
    "conv_transpose2d": (
        lambda n: n.ConvTranspose2d(4, 6, (3, 2), 2, 1, output_padding=1, groups=2, bias=False),
        (2, 4, 5, 6),
    ),
    "conv_transpose1d": (lambda n: n.ConvTranspose1d(3, 2, 4, 3, dilation=2), (2, 3, 6)),
    "max_pool2d": (lambda n: n.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 3, 8, 7)),
    "max_pool1d": (lambda n: n.MaxPool1d(2), (2, 3, 7)),
    "avg_pool2d": (lambda n: n.AvgPool2d((2, 3), padding=(1, 0), count_include_pad=False), (2, 3, 8, 9)),
    "avg_pool2d_divisor": (lambda n: n.AvgPool2d(2, divisor_override=3), (1, 1, 4, 4)),
    "avg_pool1d": (lambda n: n.AvgPool1d(3, 1, 1), (2, 3, 7)),
    "adaptive_avg_pool2d": (lambda n: n.AdaptiveAvgPool2d((3, 2)), (2, 3, 8, 7)),
    "adaptive_avg_pool1d": (lambda n: n.AdaptiveAvgPool1d(3), (2, 3, 7)),
    "adaptive_max_pool2d": (lambda n: n.AdaptiveMaxPool2d(2), (2, 3, 5, 7)),
    "adaptive_max_pool1d": (lambda n: n.AdaptiveMaxPool1d(2), (2, 3, 5)),
    "max_pool3d": (lambda n: n.MaxPool3d(3, 2, padding=1), (2, 3, 5, 6, 7)),
    "avg_pool3d": (lambda n: n.AvgPool3d((2, 3, 1), divisor_override=5), (2, 3, 5, 6, 7)),
    "adaptive_avg_pool3d": (lambda n: n.AdaptiveAvgPool3d((3, None, 2)), (2, 3, 5, 6, 7)),
    "adaptive_max_pool3d": (lambda n: n.AdaptiveMaxPool3d(2), (2, 3, 5, 6, 7)),
    "adaptive_avg_pool2d_partial": (lambda n: n.AdaptiveAvgPool2d((None, 2)), (2, 3, 8, 7)),
    "flatten": (lambda n: n.Flatten(), (2, 3, 4)),
    "unflatten": (lambda n: n.Unflatten(1, (2, 3)), (2, 6)),
    "identity": (lambda n: n.Identity(3, x=4), (2, 3)),
    "relu": (lambda n: n.ReLU(), (3, 7)),
    "relu6": (lambda n: n.ReLU6(), (3, 7)),
    "leaky_relu": (lambda n: n.LeakyReLU(0.2), (3, 7)),
    "elu": (lambda n: n.ELU(0.7), (3, 7)),
    "selu": (lambda n: n.SELU(), (3, 7)),
    "celu": (lambda n: n.CELU(0.7), (3, 7)),
    "gelu": (lambda n: n.GELU(), (3, 7)),
    "gelu_tanh": (lambda n: n.GELU("tanh"), (3, 7)),
    "silu": (lambda n: n.SiLU(), (3, 7)),
    "mish": (lambda n: n.Mish(), (3, 7)),
    "softplus": (lambda n: n.Softplus(2.0, 3.0), (3, 7)),
    "softsign": (lambda n: n.Softsign(), (3, 7)),
    "sigmoid": (lambda n: n.Sigmoid(), (3, 7)),
    "logsigmoid": (lambda n: n.LogSigmoid(), (3, 7)),
    "tanh": (lambda n: n.Tanh(), (3, 7)),
    "hardtanh": (lambda n: n.Hardtanh(-0.5, 0.7), (3, 7)),
    "hardsigmoid": (lambda n: n.Hardsigmoid(), (3, 7)),
    "hardswish": (lambda n: n.Hardswish(), (3, 7)),
    "softmax": (lambda n: n.Softmax(-1), (3, 7)),
    "log_softmax": (lambda n: n.LogSoftmax(1), (3, 7, 2)),
}
FLOAT_CONSTANTS = ("celu", "hardsigmoid")  # PyTorch's backward rounds 1/alpha and 1/6 to float32
OTHER_REPR = ("avg_pool1d", "conv1d_valid")  # PyTorch writes (3,) where we write 3, and padding=valid


@pytest.mark.torch
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_torch(name):
    """Output, input gradient and parameter gradients, in float64 so that only the formula counts."""
    import torch

    make, shape = LAYERS[name]
    theirs = make(torch.nn).double()
    ours = make(nn).double()
    assert repr(ours) == repr(theirs) or name in OTHER_REPR
    ours.load_state_dict({k: fastnn.from_numpy(v.numpy().copy()) for k, v in theirs.state_dict().items()})
    values = np.random.default_rng(0).normal(size=shape) * 2
    x = fastnn.tensor(values, requires_grad=True)
    x_theirs = torch.tensor(values, requires_grad=True)
    y, y_theirs = ours(x), theirs(x_theirs)
    np.testing.assert_allclose(array(y), y_theirs.detach().numpy(), rtol=1e-12, atol=1e-12)
    weights = np.random.default_rng(1).normal(size=y_theirs.shape)
    y.backward(fastnn.tensor(weights))
    y_theirs.backward(torch.tensor(weights))
    rtol = 2**-23 if name in FLOAT_CONSTANTS else 1e-11
    np.testing.assert_allclose(array(x.grad), x_theirs.grad.numpy(), rtol=rtol, atol=1e-12)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(array(p.grad), q.grad.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["relu", "selu", "silu", "mish", "hardsigmoid", "hardswish"])
def test_activation_can_overwrite_its_input(name):
    layer = LAYERS[name][0](nn)
    x = fastnn.randn(3, 4)
    expected = array(layer(x))
    layer.inplace = True
    assert layer(x) is x
    np.testing.assert_array_equal(array(x), expected)
    assert "inplace=True" in repr(layer)
    z = fastnn.randn(3, 4)
    assert getattr(F, name)(z, inplace=True) is z


def test_min_pools_are_negated_max_pools():
    x = fastnn.randn(2, 3, 7, 9)
    np.testing.assert_array_equal(array(nn.MinPool2d(3, 2, 1)(x)), -array(nn.MaxPool2d(3, 2, 1)(-x)))
    x = fastnn.randn(2, 3, 7)
    np.testing.assert_array_equal(array(nn.MinPool1d(2, dilation=2)(x)), -array(nn.MaxPool1d(2, dilation=2)(-x)))


def test_max_pool_gives_indices():
    x = fastnn.tensor([[[[1.0, 5.0], [2.0, 3.0]]]])
    y, where = nn.MaxPool2d(2, return_indices=True)(x)
    assert y.item() == 5
    assert where.item() == 1
    assert where.dtype is fastnn.int64
    y, where = F.max_pool1d(x[0], 2, return_indices=True)
    assert array(where).tolist() == [[[1], [1]]]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups=2"),
        (lambda: nn.Conv2d(3, 3, 3, groups=0), ValueError, "groups=0"),
        (lambda: nn.Conv2d(3, 4, 3, padding_mode="reflect"), ValueError, "padding_mode 'reflect'"),
        (lambda: nn.Conv2d(3, 4, 3, padding="same", stride=2), ValueError, "stride"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "'full'"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), ValueError, "kernel_size"),
        (lambda: nn.Conv2d(3, 4, 2.5), TypeError, "kernel_size"),
        (lambda: nn.MaxPool2d("3"), TypeError, "kernel_size"),
        (lambda: nn.Dropout(1.5), ValueError, "probability"),
        (lambda: nn.Embedding(4, 2, padding_idx=4), ValueError, "padding_idx 4"),
        (lambda: nn.MSELoss(reduction="avg"), ValueError, "reduction"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=2), ValueError, "label_smoothing"),
        (lambda: nn.HuberLoss(delta=0), ValueError, "delta"),
        (lambda: nn.Hardtanh(1, -1), ValueError, "max_val"),
        (lambda: nn.Unflatten(1, (2, 2))(fastnn.zeros(2, 6)), ValueError, "size 6"),
        (lambda: nn.Unflatten(3, (2, 3))(fastnn.zeros(2, 6)), IndexError, "axis 3"),
        (lambda: F.dropout2d(fastnn.zeros(2, 3)), ValueError, "4-D"),
    ],
)
def test_wrong_arguments_raise_with_their_values(make, error, text):
    with pytest.raises(error, match=text):
        make()


# ---- dropout and embedding -------------------------------------------------------------------------


def test_dropout_keeps_the_mean_in_training_and_everything_in_eval():
    fastnn.manual_seed(0)
    layer, x = nn.Dropout(0.3), fastnn.ones(100, 1000)
    y = array(layer(x))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    # standard error of the mean of n scaled Bernoulli values: sqrt(p / (1 - p) / n)
    assert abs(y.mean() - 1) < 5 * math.sqrt(0.3 / 0.7 / y.size)
    layer.eval()
    np.testing.assert_array_equal(array(layer(x)), array(x))


@pytest.mark.parametrize(("layer", "shape"), [(nn.Dropout1d, (50, 40, 7)), (nn.Dropout2d, (50, 40, 3, 4))])
def test_channel_dropout_drops_whole_channels(layer, shape):
    fastnn.manual_seed(0)
    y = array(layer(0.5)(fastnn.ones(*shape))).reshape(shape[0], shape[1], -1)
    assert (y == y[:, :, :1]).all()
    assert 0.4 < (y[:, :, 0] == 0).mean() < 0.6
    x = fastnn.randn(*shape)
    np.testing.assert_array_equal(array(layer(0.5).eval()(x)), array(x))


def test_embedding_padding_row_is_zero_and_gets_no_gradient():
    layer = nn.Embedding(5, 3, padding_idx=-4)
    assert layer.padding_idx == 1
    assert (array(layer.weight)[1] == 0).all()
    layer(fastnn.tensor([[0, 1], [1, 4]])).sum().backward()
    assert array(layer.weight.grad).tolist() == [[1] * 3, [0] * 3, [0] * 3, [0] * 3, [1] * 3]
    with pytest.raises(IndexError, match="5"):
        layer(fastnn.tensor([0, 5]))
    table = fastnn.randn(4, 2)
    frozen = nn.Embedding.from_pretrained(table)
    assert not frozen.weight.requires_grad
    np.testing.assert_array_equal(array(frozen(fastnn.tensor([3]))), array(table)[3:])


# ---- losses ----------------------------------------------------------------------------------------


def loss_cases(n):
    """(name, the module of package n, input, target)."""
    rng = np.random.default_rng(3)
    logits, ids = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    ids[2] = 1
    probabilities = rng.dirichlet(np.ones(5), 6)
    a, b = rng.normal(size=(4, 3)) * 2, rng.normal(size=(4, 3))
    p, y = rng.uniform(0.05, 0.95, (4, 3)), rng.uniform(0, 1, (4, 3))
    log_p = np.log(probabilities)
    return {
        "cross_entropy": (n.CrossEntropyLoss(), logits, ids),
        "cross_entropy_options": (
            n.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1, reduction="sum"),
            logits,
            ids,
        ),
        "cross_entropy_soft": (n.CrossEntropyLoss(reduction="none"), logits, probabilities),
        "nll": (n.NLLLoss(ignore_index=1), log_p, ids),
        "mse": (n.MSELoss(), a, b),
        "l1": (n.L1Loss(reduction="sum"), a, b),
        "huber": (n.HuberLoss(delta=0.7), a, b),
        "smooth_l1": (n.SmoothL1Loss(reduction="none", beta=0.5), a, b),
        "bce": (n.BCELoss(), p, y),
        "bce_logits": (n.BCEWithLogitsLoss(), a, y),
        "kl_div": (n.KLDivLoss(reduction="batchmean"), log_p, rng.dirichlet(np.ones(5), 6)),
    }


@pytest.mark.torch
@pytest.mark.parametrize("name", loss_cases(nn))
def test_loss_equals_torch(name):
    import torch

    ours, values, target = loss_cases(nn)[name]
    theirs = loss_cases(torch.nn)[name][0]
    x, x_theirs = fastnn.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    loss, loss_theirs = ours(x, fastnn.tensor(target)), theirs(x_theirs, torch.tensor(target))
    np.testing.assert_allclose(array(loss), loss_theirs.detach().numpy(), rtol=1e-12)
    loss.sum().backward()
    loss_theirs.sum().backward()
    np.testing.assert_allclose(array(x.grad), x_theirs.grad.numpy(), rtol=1e-11, atol=1e-14)


@pytest.mark.torch
def test_loss_weights_are_buffers_and_equal_torch():
    import torch

    rng = np.random.default_rng(5)
    logits, ids, weight = rng.normal(size=(6, 3)), rng.integers(0, 3, 6), rng.uniform(0.5, 2, 3)
    ours, theirs = nn.CrossEntropyLoss(fastnn.tensor(weight)), torch.nn.CrossEntropyLoss(torch.tensor(weight))
    assert [name for name, _ in ours.named_buffers()] == ["weight"]
    expected = theirs(torch.tensor(logits), torch.tensor(ids)).item()
    assert math.isclose(ours(fastnn.tensor(logits), fastnn.tensor(ids)).item(), expected, rel_tol=1e-12)
    y = rng.uniform(size=(6, 3))
    ours = nn.BCEWithLogitsLoss(fastnn.tensor(weight), pos_weight=fastnn.tensor(weight))
    theirs = torch.nn.BCEWithLogitsLoss(torch.tensor(weight), pos_weight=torch.tensor(weight))
    expected = theirs(torch.tensor(logits), torch.tensor(y)).item()
    assert math.isclose(ours(fastnn.tensor(logits), fastnn.tensor(y)).item(), expected, rel_tol=1e-12)


def test_debug_mode_warns_of_softmax_before_cross_entropy():
    logits, target = fastnn.randn(4, 3), fastnn.tensor([0, 1, 2, 0])
    before = fastnn.is_debug()
    try:
        fastnn.set_debug(True)
        with pytest.warns(UserWarning, match="sums to 1"):
            F.cross_entropy(F.softmax(logits, 1), target)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            F.cross_entropy(logits, target)
            fastnn.set_debug(False)
            F.cross_entropy(F.softmax(logits, 1), target)
    finally:
        fastnn.set_debug(before)


# ---- init ------------------------------------------------------------------------------------------


def test_default_weights_are_uniform_in_one_over_root_fan_in():
    fastnn.manual_seed(1)
    for layer, fan_in in ((nn.Linear(400, 300), 400), (nn.Conv2d(16, 64, 5), 400), (nn.Conv1d(80, 60, 5), 400)):
        bound = 1 / math.sqrt(fan_in)
        for values in (array(layer.weight), array(layer.bias)):
            assert np.abs(values).max() <= bound
            # of n uniform values the largest is within 20 bound / n of the bound but for a chance of exp(-20)
            assert np.abs(values).max() > bound * (1 - 20 / values.size)


@pytest.mark.parametrize(
    ("fill", "mean", "std"),
    [
        (lambda w: nn.init.uniform_(w, -1, 3), 1, 4 / math.sqrt(12)),
        (lambda w: nn.init.normal_(w, 2, 0.5), 2, 0.5),
        (lambda w: nn.init.xavier_uniform_(w, 2), 0, 2 * math.sqrt(2 / (150 * 8 + 200 * 8))),
        (lambda w: nn.init.xavier_normal_(w), 0, math.sqrt(2 / (150 * 8 + 200 * 8))),
        (lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"), 0, math.sqrt(2 / (150 * 8))),
        (lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"), 0, math.sqrt(2 / (200 * 8))),
        (lambda w: nn.init.trunc_normal_(w, 0, 1, -1, 1), 0, 0.5396),
    ],
)
def test_random_fills_have_their_mean_and_deviation(fill, mean, std):
    fastnn.manual_seed(3)
    weight = nn.Parameter(fastnn.empty(200, 150, 8))
    assert fill(weight) is weight
    assert weight.is_leaf
    values = array(weight).astype(np.float64)
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(values.size)
    assert abs(values.std() - std) < 5 * std / math.sqrt(values.size)


def test_fixed_fills_and_their_errors():
    assert (array(nn.init.constant_(fastnn.empty(3), 4)) == 4).all()
    assert (array(nn.init.ones_(fastnn.empty(3))) == 1).all()
    assert (array(nn.init.zeros_(fastnn.empty(3))) == 0).all()
    np.testing.assert_array_equal(array(nn.init.eye_(fastnn.empty(2, 3))), np.eye(2, 3))
    for shape in ((6, 4), (4, 6), (4, 2, 3)):
        q = array(nn.init.orthogonal_(fastnn.empty(*shape, dtype=fastnn.float64), 2.0)).reshape(shape[0], -1) / 2
        gram = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight)
    x = fastnn.randn(1, 3, 5, 5)
    np.testing.assert_array_equal(array(conv(x)), array(x))
    with pytest.raises(ValueError, match="two dimensions"):
        nn.init.kaiming_uniform_(fastnn.empty(3))
    with pytest.raises(ValueError, match="at least 1 %"):
        nn.init.trunc_normal_(fastnn.empty(3), a=8, b=9)
    with pytest.raises(ValueError, match="'swish'"):
        nn.init.calculate_gain("swish")


# ---- gradient helpers ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_clip_grad_norm(norm_type):
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=s).astype(np.float32) for s in ((3, 4), (5,))]
    params = [nn.Parameter(fastnn.zeros(*g.shape)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = fastnn.tensor(g)
    expected = np.linalg.norm(np.concatenate([g.ravel() for g in grads]).astype(np.float64), norm_type)
    norm = nn.utils.clip_grad_norm_([*params, nn.Parameter(fastnn.zeros(2))], 0.5, norm_type)
    assert math.isclose(norm.item(), expected, rel_tol=1e-5)
    for p, g in zip(params, grads, strict=True):
        np.testing.assert_allclose(array(p.grad), g * 0.5 / expected, rtol=1e-5)
    before = [array(p.grad).copy() for p in params]
    nn.utils.clip_grad_norm_(params, 1e6)
    for p, g in zip(params, before, strict=True):
        np.testing.assert_array_equal(array(p.grad), g)


def test_clip_grad_norm_can_refuse_what_is_not_finite():
    p = nn.Parameter(fastnn.zeros(2))
    p.grad = fastnn.tensor([1.0, math.inf])
    with pytest.raises(RuntimeError, match="inf"):
        nn.utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert array(p.grad).tolist() == [1, math.inf]
    assert nn.utils.clip_grad_norm_([nn.Parameter(fastnn.zeros(1))], 1.0).item() == 0


def test_clip_value_and_vectors():
    p, q = nn.Parameter(fastnn.zeros(3)), nn.Parameter(fastnn.ones(2, 2))
    p.grad = fastnn.tensor([-3.0, 0.5, 3.0])
    nn.utils.clip_grad_value_([p, q], 1.0)
    assert array(p.grad).tolist() == [-1, 0.5, 1]
    vector = nn.utils.parameters_to_vector([p, q])
    assert array(vector).tolist() == [0, 0, 0, 1, 1, 1, 1]
    nn.utils.vector_to_parameters(vector.detach() + 1, [p, q])
    assert array(q).tolist() == [[2, 2], [2, 2]]
    with pytest.raises(ValueError, match="7 values"):
        nn.utils.vector_to_parameters(fastnn.zeros(8), [p, q])
