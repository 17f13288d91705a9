"""Normalization layers: PyTorch's parameters, state and memory formats, and double backward."""

import numpy as np
import pytest

import fastnn
from fastnn import nn

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)

LAYERS = {
    "LayerNorm": (lambda lib: lib.nn.LayerNorm((3, 5)), (4, 2, 3, 5)),
    "LayerNorm without bias": (lambda lib: lib.nn.LayerNorm(5, eps=1e-3, bias=False), (4, 5)),
    "LayerNorm without parameters": (lambda lib: lib.nn.LayerNorm(5, elementwise_affine=False), (4, 5)),
    "RMSNorm": (lambda lib: lib.nn.RMSNorm(5, eps=1e-3), (4, 5)),
    "RMSNorm without eps": (lambda lib: lib.nn.RMSNorm([3, 5]), (2, 3, 5)),
    "GroupNorm": (lambda lib: lib.nn.GroupNorm(3, 6), (2, 6, 4, 5)),
    "GroupNorm without parameters": (lambda lib: lib.nn.GroupNorm(3, 6, affine=False), (2, 6, 7)),
    "InstanceNorm1d": (lambda lib: lib.nn.InstanceNorm1d(3, affine=True), (2, 3, 7)),
    "InstanceNorm2d": (lambda lib: lib.nn.InstanceNorm2d(3, track_running_stats=True), (2, 3, 4, 5)),
    "InstanceNorm2d without a batch": (lambda lib: lib.nn.InstanceNorm2d(3), (3, 4, 5)),
    "InstanceNorm3d": (
        lambda lib: lib.nn.InstanceNorm3d(3, affine=True, track_running_stats=True, momentum=None),
        (2, 3, 2, 4, 3),
    ),
    "BatchNorm1d": (lambda lib: lib.nn.BatchNorm1d(3, momentum=None), (4, 3, 5)),
    "BatchNorm3d": (lambda lib: lib.nn.BatchNorm3d(3), (2, 3, 2, 4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_follows_torch(name: str) -> None:
    """Two training steps and an evaluation from one state_dict; gradients and running statistics at the end."""
    make, shape = LAYERS[name]
    theirs, ours = make(torch).double(), make(fastnn).double()
    for parameter in theirs.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    ours.load_state_dict({key: fastnn.from_numpy(v.numpy().copy()) for key, v in theirs.state_dict().items()})
    x = RNG.standard_normal((3, *shape)) * 2 + 1
    for step, training in enumerate((True, True, False)):
        a, b = torch.from_numpy(x[step]).requires_grad_(), fastnn.from_numpy(x[step]).requires_grad_()
        y, z = theirs.train(training)(a), ours.train(training)(b)
        np.testing.assert_allclose(z.detach().numpy(), y.detach().numpy(), rtol=0, atol=1e-12)
        (y * y.sin()).sum().backward()
        (z * z.sin()).sum().backward()
        np.testing.assert_allclose(b.grad.numpy(), a.grad.numpy(), rtol=0, atol=1e-11)
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(state[key].numpy(), value.numpy(), rtol=1e-12, err_msg=key)
    for (key, parameter), (_, own) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        np.testing.assert_allclose(own.grad.numpy(), parameter.grad.numpy(), rtol=0, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fused_sum_rounds_as_the_separate_steps(dtype: str) -> None:
    x, residual = (
        fastnn.from_numpy(RNG.standard_normal((5, 37)).astype(np.float32)).to(getattr(fastnn, dtype)) for _ in "ab"
    )
    weight = fastnn.from_numpy(RNG.standard_normal(37).astype(np.float32))
    total, normed = nn.fused.add_layer_norm(x, residual, weight)
    assert (total == x + residual).all() and (normed == nn.functional.layer_norm(total, 37, weight)).all()
    total, normed = nn.fused.add_rms_norm(x, residual, weight)
    assert (total == x + residual).all() and (normed == nn.functional.rms_norm(total, 37, weight)).all()


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 6, 4, 5), 2), ((9, 6, 3, 5), 3), ((3, 1030, 3, 2), 5), ((1, 12, 90, 70), 12), ((2, 6, 7), 6)],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_group_norm_of_channels_last(shape: tuple[int, ...], groups: int, dtype: str) -> None:
    """One sample and several, pieces of the channels, a group each; with the numbers of the row-major tensor."""
    order = (0, len(shape) - 1, *range(1, len(shape) - 1))
    results = []
    values, weight, bias, dy = (RNG.standard_normal(s) + 1 for s in (shape, shape[1], shape[1], shape))
    for last in (False, True):
        x, d, w, b = (fastnn.from_numpy(v).to(getattr(fastnn, dtype)) for v in (values, dy, weight, bias))
        if last:
            x, d = (t.movedim(1, -1).contiguous().permute(order) for t in (x, d))
        leaves = [t.requires_grad_() for t in (x, w, b)]
        y = nn.functional.group_norm(x, groups, w, b)
        gradients = fastnn.autograd.grad(y, leaves, d)
        assert y.stride() == gradients[0].stride() == x.stride()
        results.append([t.detach().double().numpy() for t in (y, *gradients)])
    # The sums of a group and over the samples in another order; 16-bit results are rounded once each.
    terms = values.size // (shape[0] * groups) + values.size // shape[1]
    roundoff = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-24}[dtype]
    for row_major, other in zip(*results, strict=True):
        rounding = 2 * 2.0**-8 * np.abs(row_major) if dtype == "bfloat16" else 0
        np.testing.assert_array_less(
            np.abs(other - row_major), rounding + terms * roundoff * np.abs(row_major).max() + 1e-300
        )


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: nn.functional.layer_norm(x, 6, w, b),
        lambda x, w, b: nn.functional.rms_norm(x, 6, w) + b,
        lambda x, w, b: nn.fused.add_layer_norm(x, x * x, w, b)[1],
        lambda x, w, b: nn.functional.group_norm(x, 2, w, b),
    ],
    ids=["layer_norm", "rms_norm", "add_layer_norm", "group_norm"],
)
def test_double_backward(function) -> None:
    """The gradient of a gradient against its central difference."""
    x, w, b = (
        fastnn.from_numpy(v).requires_grad_() for v in (RNG.standard_normal((3, 6)), *RNG.uniform(0.5, 1.5, (2, 6)))
    )
    direction = fastnn.from_numpy(RNG.standard_normal((3, 6)))

    def slope(at: fastnn.Tensor) -> fastnn.Tensor:
        (gradient,) = fastnn.autograd.grad(function(at, w, b).sin().sum(), [at], create_graph=True)
        return (gradient * direction).sum()

    (second,) = fastnn.autograd.grad(slope(x), [x])
    step = 1e-5 * direction
    moved = [slope((x.detach() + sign * step).requires_grad_()).item() for sign in (1, -1)]
    np.testing.assert_allclose((second * direction).sum().item(), (moved[0] - moved[1]) / 2e-5, rtol=1e-6)


def test_linear_cross_entropy_refuses_a_second_derivative() -> None:
    x, w = (fastnn.from_numpy(RNG.standard_normal((4, 3))).requires_grad_() for _ in "ab")
    loss = nn.functional.linear_cross_entropy(x, w, fastnn.tensor([0, 1, 2, 3]))
    with pytest.raises(RuntimeError, match="linear_cross_entropy"):
        fastnn.autograd.grad(loss, [x], create_graph=True)[0].sum().backward()


def test_linear_cross_entropy_in_bfloat16_is_near_float64() -> None:
    """Several chunks: rounding the logits to 8 bits is all that separates the two."""
    x, w = (RNG.standard_normal(shape).astype(np.float32) for shape in ((60, 16), (40, 16)))
    labels = RNG.integers(0, 40, 60)
    theirs = [torch.from_numpy(v).bfloat16().double().requires_grad_() for v in (x, w)]
    ours = [fastnn.from_numpy(v).to(fastnn.bfloat16).requires_grad_() for v in (x, w)]
    expected = torch.nn.functional.cross_entropy(theirs[0] @ theirs[1].T, torch.from_numpy(labels))
    loss = nn.functional.linear_cross_entropy(*ours, fastnn.from_numpy(labels), chunk=13)
    largest = (theirs[0] @ theirs[1].T).abs().max().item()
    assert abs(loss.item() - expected.item()) <= 2**-8 * (largest + expected.item())
    expected.backward()
    loss.backward()
    for own, their in zip(ours, theirs, strict=True):
        scale = float(their.grad.abs().max())
        np.testing.assert_allclose(
            own.grad.float().numpy(), their.grad.numpy(), rtol=0, atol=2**-8 * (1 + largest) * scale
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rms_norm_of_small_numbers_without_eps(dtype: str) -> None:
    """The default epsilon is float32's, also of 16-bit floats: theirs would outweigh the mean square here."""
    x = fastnn.full((1, 8), 0.03125, dtype=getattr(fastnn, dtype))
    expected = 0.03125 / np.sqrt(0.03125**2 + 2.0**-23)
    assert abs(fastnn.nn.functional.rms_norm(x, (8,))[0, 0].item() - expected) < 2.0**-8
