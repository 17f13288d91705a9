"""The networks of fastnn.models, fused forms, and batch normalization folded into the layer before it."""

import copy

import numpy as np
import pytest

import fastnn
from fastnn import models, nn, optim
from fastnn.nn import functional as F
from fastnn.nn import fused
from fastnn.nn.utils import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_eval, fusion

RESNETS = {
    "resnet18": ((2, 2, 2, 2), 2, 11_689_512),
    "resnet34": ((3, 4, 6, 3), 2, 21_797_672),
    "resnet50": ((3, 4, 6, 3), 3, 25_557_032),
    "resnet101": ((3, 4, 23, 3), 3, 44_549_160),
}


def norm_keys(prefix):
    return [f"{prefix}.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def resnet_keys(layers, depth):
    """torchvision's names, in its order."""
    keys = ["conv1.weight", *norm_keys("bn1")]
    for stage, n_blocks in enumerate(layers, 1):
        for block in range(n_blocks):
            prefix = f"layer{stage}.{block}"
            for i in range(1, depth + 1):
                keys += [f"{prefix}.conv{i}.weight", *norm_keys(f"{prefix}.bn{i}")]
            if block == 0 and (stage > 1 or depth == 3):
                keys += [f"{prefix}.downsample.0.weight", *norm_keys(f"{prefix}.downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


def images(*shape, seed=0):
    return fastnn.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def settle(model, seed=1):
    """Statistics, scales and shifts as after training: no two channels alike."""
    rng = np.random.default_rng(seed)
    with fastnn.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2),
                ):
                    tensor.copy_(fastnn.from_numpy(rng.uniform(low, high, tuple(tensor.shape)).astype(np.float32)))
    return model


def close(actual, expected, relative=2e-5):
    """Sums of up to thousands of float32 products, tens of layers deep."""
    actual, expected = actual.detach().double().numpy(), expected.detach().double().numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


# ---- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_has_torchvisions_keys_and_size(name):
    layers, depth, size = RESNETS[name]
    model = getattr(models, name)()
    assert list(model.state_dict()) == resnet_keys(layers, depth)
    assert sum(p.numel() for p in model.parameters()) == size


def test_resnet_starts_like_torchvision():
    model = models.ResNet(models.Bottleneck, (1, 1, 1, 1), 10, zero_init_residual=True)
    weight = model.layer4[0].conv2.weight.detach().numpy()
    assert np.std(weight) == pytest.approx(np.sqrt(2 / (512 * 9)), rel=0.01)
    assert not model.layer1[0].bn3.weight.detach().numpy().any()
    assert model.layer1[0].bn2.weight.detach().numpy().all()


@pytest.mark.parametrize(
    "model, size, shape",
    [
        (models.LeNet5(), 61_706, (2, 1, 28, 28)),
        (models.KerasCNN(), 122_570, (2, 3, 32, 32)),
        (models.KerasCNN(1, 28), 93_322, (2, 1, 28, 28)),
    ],
)
def test_small_networks(model, size, shape):
    assert sum(p.numel() for p in model.parameters()) == size
    assert tuple(model(images(*shape)).shape) == (2, 10)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match=r"18 x 18.*17"):
        models.KerasCNN(image_size=17)


@pytest.mark.torch
@pytest.mark.parametrize(
    "name, options, shape",
    [
        ("resnet18", {"num_classes": 7}, (2, 3, 64, 64)),
        ("resnet50", {"num_classes": 7}, (2, 3, 64, 64)),
        ("LeNet5", {}, (3, 1, 28, 28)),
        ("KerasCNN", {}, (3, 3, 32, 32)),
    ],
)
def test_like_torch(name, options, shape):
    """Logits in evaluation and training, statistics and gradients, in float64."""
    import torch

    import torch_models

    fastnn.manual_seed(0)
    ours = settle(getattr(models, name)(**options)).double()
    theirs = getattr(torch_models, name)(**options).double()
    theirs.load_state_dict({k: torch.from_numpy(v.numpy().copy()) for k, v in ours.state_dict().items()})
    x = np.random.default_rng(0).standard_normal(shape)
    with fastnn.no_grad(), torch.no_grad():
        y, t = ours.eval()(fastnn.from_numpy(x)), theirs.eval()(torch.from_numpy(x))
    np.testing.assert_allclose(y.numpy(), t.numpy(), rtol=1e-10, atol=1e-10 * np.abs(t.numpy()).max())
    y, t = ours.train()(fastnn.from_numpy(x)), theirs.train()(torch.from_numpy(x))
    (y * y).sum().backward()
    (t * t).sum().backward()
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        want = q.grad.numpy()
        np.testing.assert_allclose(p.grad.numpy(), want, rtol=0, atol=1e-8 * np.abs(want).max(), err_msg=key)
    for (key, b), c in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        np.testing.assert_allclose(b.numpy(), c.numpy(), rtol=1e-10, atol=1e-12, err_msg=key)


def test_resnet_learns():
    fastnn.manual_seed(0)
    model = models.ResNet(models.BasicBlock, (1, 1, 1, 1), 4)
    x, labels = images(8, 3, 32, 32), fastnn.arange(8) % 4
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.bn1.num_batches_tracked.item() == 6


def test_channels_last_images():
    model = settle(models.ResNet(models.BasicBlock, (1, 1, 1, 1), 4)).eval()
    x = images(2, 32, 32, 3).permute(0, 3, 1, 2)
    with fastnn.no_grad():
        close(model(x), model(x.contiguous()))
    close(model(x), model(x.contiguous()))


# ---- folding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [models.BasicBlock, models.Bottleneck])
def test_folded_inference_is_the_unfolded_one(block):
    fastnn.manual_seed(0)
    model = settle(models.ResNet(block, (1, 1, 1, 1), 5)).eval()
    x = images(2, 3, 40, 40)
    with fastnn.no_grad():
        folded = model(x)
    assert model._fused_stem._folded is not None
    unfolded = model(x)
    assert unfolded.requires_grad
    close(folded, unfolded)
    with fastnn.no_grad():
        close(copy.deepcopy(model)(x), unfolded)


def test_folded_weights_follow_every_change():
    conv, bn, pair = nn.Conv2d(3, 4, 3), settle(nn.BatchNorm2d(4)), fused.ConvBN()
    conv.eval(), bn.eval()
    x = images(2, 3, 6, 6)

    def check(x=x):
        with fastnn.no_grad():
            close(pair(conv, bn, x), bn(conv(x)))
            return pair._folded

    first = check()
    assert check() is first  # nothing changed: the same weights again
    changes = [
        lambda: conv.weight.mul_(2),
        lambda: conv.bias.add_(1),
        lambda: bn.weight.mul_(3),
        lambda: bn.bias.sub_(1),
        lambda: bn.running_mean.add_(1),
        lambda: bn.running_var.mul_(2),
        lambda: setattr(bn, "eps", 0.5),
        lambda: setattr(conv, "bias", None),
        lambda: setattr(conv, "weight", nn.Parameter(fastnn.randn(4, 3, 3, 3))),
        lambda: setattr(conv.weight, "data", fastnn.randn(4, 3, 3, 3)),
        lambda: bn.load_state_dict(settle(nn.BatchNorm2d(4), 2).state_dict()),
    ]
    for change in changes:
        with fastnn.no_grad():
            change()
        assert check() is not first
        first = check()
    bn.train()(conv(x))
    bn.eval()
    assert check() is not first
    conv.double(), bn.double()
    check(x.double())


def test_folding_stays_away_from_training_gradients_and_hooks():
    conv, bn, pair = nn.Conv2d(3, 4, 3), settle(nn.BatchNorm2d(4)), fused.ConvBN()
    x = images(2, 3, 6, 6)
    with fastnn.no_grad():
        pair(conv, bn, x)
        assert pair._folded is None
        assert bn.num_batches_tracked.item() == 1
    conv.eval(), bn.eval()
    pair(conv, bn, x).sum().backward()
    assert pair._folded is None
    assert bn.weight.grad is not None
    for module in (conv, bn):
        module.requires_grad_(False)
    pair(conv, bn, x)
    assert pair._folded is not None  # nothing wants a gradient
    seen = []
    bn.register_forward_hook(lambda *_: seen.append(1))
    pair(conv, bn, x)
    assert seen == [1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_fuse_conv_bn_eval(bias, affine):
    conv, bn = nn.Conv2d(3, 4, 3, stride=2, bias=bias).eval(), nn.BatchNorm2d(4, affine=affine).eval()
    if affine:
        settle(bn)
    x = images(2, 3, 9, 9)
    fused_conv = fuse_conv_bn_eval(conv, bn)
    assert fused_conv.stride == (2, 2)
    close(fused_conv(x), bn(conv(x)))
    assert fusion.fuse_conv_bn_eval is fuse_conv_bn_eval


def test_fuse_linear_bn_eval():
    linear, bn = nn.Linear(5, 6).eval(), settle(nn.BatchNorm1d(6)).eval()
    x = images(4, 5)
    close(fuse_linear_bn_eval(linear, bn)(x), bn(linear(x)))
    with pytest.raises(ValueError, match=r"6 output features.*7"):
        fuse_linear_bn_eval(linear, nn.BatchNorm1d(7).eval())


def test_fuse_transposed_weights():
    """Output channels of a transposed convolution are axis 1."""
    bn, w = settle(nn.BatchNorm2d(4)), fastnn.randn(3, 4, 2, 2)
    weight, bias = fuse_conv_bn_weights(w, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias, True)
    scale = bn.weight.detach().numpy() / np.sqrt(bn.running_var.numpy() + bn.eps)
    np.testing.assert_allclose(weight.detach().numpy(), w.numpy() * scale[:, None, None], rtol=1e-6)
    shift = bn.bias.detach().numpy() - bn.running_mean.numpy() * scale
    np.testing.assert_allclose(bias.detach().numpy(), shift, rtol=1e-5, atol=1e-6)


def test_fusing_needs_evaluation_and_statistics():
    with pytest.raises(RuntimeError, match=r"fuse_conv_bn_eval.*eval"):
        fuse_conv_bn_eval(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(RuntimeError, match=r"fuse_conv_bn_eval.*no running statistics"):
        fuse_conv_bn_eval(nn.Conv2d(3, 4, 3).eval(), nn.BatchNorm2d(4, track_running_stats=False).eval())


# ---- fused forms ----------------------------------------------------------------------------------

ACTIVATIONS = (None, "relu", "gelu", "silu", "sigmoid", "tanh")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_forms(activation):
    finish = (lambda y: y) if activation is None else getattr(F, activation)
    x, w, b = images(2, 4, 7, 7), images(6, 2, 3, 3, seed=1), images(6, seed=2)
    options = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2}
    plain = F.conv2d(x, w, b, **options)
    residual = images(*plain.shape, seed=3)
    close(fused.conv2d(x, w, b, **options, activation=activation), finish(plain))
    close(fused.conv2d(x, w, b, **options, activation=activation, residual=residual), finish(plain + residual))
    rows, v = images(5, 4), images(3, 4, seed=1)
    close(fused.linear(rows, v, None, activation), finish(F.linear(rows, v)))
    residual = images(5, 3, seed=3)
    close(fused.linear(rows, v, b[:3], activation, residual), finish(F.linear(rows, v, b[:3]) + residual))


def test_fused_gradients():
    tensors = [images(2, 3, 5, 5), images(4, 3, 3, 3, seed=1), images(4, seed=2), images(2, 4, 3, 3, seed=3)]
    leaves = [t.double().requires_grad_() for t in tensors]

    def forward(x, w, b, residual):
        return fused.conv2d(x, w, b, activation="tanh", residual=residual)

    assert fastnn.autograd.gradcheck(forward, leaves)


def test_fused_errors():
    x, w = images(2, 3, 5, 5), images(4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"activation.*'elu'"):
        fused.conv2d(x, w, activation="elu")
    with pytest.raises(ValueError, match=r"residual.*\(4,\).*\(2, 4, 3, 3\)"):
        fused.conv2d(x, w, residual=images(4))


# ---- the layer ------------------------------------------------------------------------------------


def test_momentum_none_averages_all_batches():
    bn, batches = nn.BatchNorm1d(3, momentum=None), [images(5, 3, seed=s) for s in range(4)]
    for x in batches:
        bn(x)
    means = [x.numpy().mean(0) for x in batches]
    variances = [x.numpy().var(0, ddof=1) for x in batches]
    np.testing.assert_allclose(bn.running_mean.numpy(), np.mean(means, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bn.running_var.numpy(), np.mean(variances, 0), rtol=1e-5)


def test_without_statistics_evaluation_uses_the_batch():
    bn, x = nn.BatchNorm2d(3, affine=False, track_running_stats=False), images(4, 3, 5, 5)
    assert list(bn.state_dict()) == []
    np.testing.assert_array_equal(bn(x).numpy(), bn.eval()(x).numpy())


def test_layer_refuses_other_dimensions():
    for layer, shape in ((nn.BatchNorm1d(3), (2, 3, 4, 5)), (nn.BatchNorm2d(3), (2, 3)), (nn.BatchNorm3d(3), (2, 3))):
        with pytest.raises(ValueError, match=rf"{type(layer).__name__}.*D.*\(2, 3"):
            layer(images(*shape))
    with pytest.raises(ValueError, match=r"more than 1 value per channel"):
        nn.BatchNorm1d(3)(images(1, 3))


def test_layer_state_and_conversion():
    bn = nn.BatchNorm2d(3)
    assert [f"x.{k}" for k in bn.state_dict()] == norm_keys("x")
    bn.bfloat16()
    assert bn.running_mean.dtype is fastnn.bfloat16
    assert bn.num_batches_tracked.dtype is fastnn.int64
    y = bn(images(4, 3, 5, 5).bfloat16())
    assert y.dtype is fastnn.bfloat16
    assert np.all(bn.running_mean.float().numpy() != 0)


def test_bfloat16_images_with_float32_parameters():
    bn, x = settle(nn.BatchNorm2d(3)), images(4, 3, 5, 5).bfloat16().requires_grad_()
    y = bn(x)
    y.float().sum().backward()
    assert (y.dtype, x.grad.dtype, bn.weight.grad.dtype) == (fastnn.bfloat16, fastnn.bfloat16, fastnn.float32)
    close(y, bn(x.float()), 2.0**-8)


def test_training_counts_a_version_of_the_statistics():
    bn = nn.BatchNorm2d(3)
    before = bn.running_mean._version, bn.running_var._version
    bn(images(2, 3, 4, 4))
    assert bn.running_mean._version > before[0]
    assert bn.running_var._version > before[1]
