"""Memory formats: what they are, who converts, and that layers keep channels_last from the input to the loss."""

import copy
import pickle

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim

FORMATS = ("contiguous_format", "channels_last", "preserve_format")
LAST = fastnn.channels_last


def image(*shape: int, last: bool = False) -> fastnn.Tensor:
    x = fastnn.randn(*shape)
    return x.to(memory_format=LAST) if last else x


def is_last(x: fastnn.Tensor) -> bool:
    return x.is_contiguous(memory_format=LAST)


def test_the_objects():
    for name in FORMATS:
        memory_format = getattr(fastnn, name)
        assert isinstance(memory_format, fastnn.memory_format) and repr(memory_format) == f"fastnn.{name}"
        assert copy.deepcopy(memory_format) is memory_format is pickle.loads(pickle.dumps(memory_format))
    assert len({getattr(fastnn, name) for name in FORMATS}) == 3


def test_conversions():
    x = image(2, 3, 4, 5)
    for y in (
        x.to(memory_format=LAST),
        x.contiguous(memory_format=LAST),
        x.clone(memory_format=LAST),
        fastnn.clone(x, memory_format=LAST),
        x.to(fastnn.float32, copy=True, memory_format=LAST),
        x.to("cpu", memory_format=LAST),
    ):
        assert y.stride() == (60, 1, 15, 3) and is_last(y) and not y.is_contiguous()
        np.testing.assert_array_equal(y.numpy(), x.numpy())
        assert y.to(memory_format=LAST) is y.contiguous(memory_format=LAST) is y
        assert y.to(memory_format=fastnn.preserve_format) is y.to(memory_format=None) is y
        assert y.clone().stride() == y.clone(memory_format=fastnn.preserve_format).stride() == y.stride()
        assert y.double().stride() == y.stride()
        back = y.to(memory_format=fastnn.contiguous_format)
        assert back.stride() == y.contiguous().stride() == x.stride()
        np.testing.assert_array_equal(back.numpy(), x.numpy())
    assert x.double().to(fastnn.float16, memory_format=LAST).stride() == (60, 1, 15, 3)
    assert x.contiguous(memory_format=fastnn.preserve_format) is x


def test_new_tensors():
    x = image(2, 3, 4, 5, last=True)
    strides = x.stride()
    assert fastnn.empty(2, 3, 4, 5, memory_format=LAST).stride() == strides
    assert fastnn.empty((2, 3, 4, 5), dtype=fastnn.int8, memory_format=LAST).stride() == strides
    for make in (fastnn.empty_like, fastnn.zeros_like, fastnn.ones_like, fastnn.rand_like, fastnn.randn_like):
        assert make(x).stride() == make(x.contiguous(), memory_format=LAST).stride() == strides
        assert make(x, memory_format=fastnn.contiguous_format).is_contiguous()
    np.testing.assert_array_equal(fastnn.full_like(x, 3, memory_format=fastnn.contiguous_format).numpy(), 3.0)
    np.testing.assert_array_equal(fastnn.ones_like(x, dtype=fastnn.int64).numpy(), 1)


def test_errors():
    matrix, volume = fastnn.randn(3, 4), fastnn.randn(1, 2, 3, 4, 5)
    for x in (matrix, volume):
        for convert in (
            x.contiguous,
            x.clone,
            x.to,
            lambda memory_format, x=x: fastnn.empty_like(x, memory_format=LAST),
        ):
            with pytest.raises(ValueError, match="channels_last: expected 4 dimensions, got shape"):
                convert(memory_format=LAST)
        assert not x.is_contiguous(memory_format=LAST)
    with pytest.raises(ValueError, match=r"expected 4 dimensions, got shape \(3,\)"):
        fastnn.empty(3, memory_format=LAST)
    with pytest.raises(ValueError, match="preserve_format"):
        fastnn.empty(3, memory_format=fastnn.preserve_format)
    with pytest.raises(ValueError, match="preserve_format"):
        matrix.t().contiguous(memory_format=fastnn.preserve_format)
    with pytest.raises(TypeError, match="memory_format"):
        matrix.to(memory_format="channels_last")
    for call in (lambda: matrix.contiguous(LAST), lambda: matrix.to(LAST), lambda: fastnn.ones(2, memory_format=LAST)):
        with pytest.raises(TypeError):
            call()


def test_sizes_of_one_and_zero():
    """One channel lies the same either way: the strides remember the format, and layers hand it on."""
    x = image(2, 1, 4, 5)
    y = x.to(memory_format=LAST)
    assert y is not x and y.stride() == (20, 1, 5, 1) and y.is_contiguous() and is_last(x)
    assert x.contiguous(memory_format=LAST) is x
    assert F.relu(y).stride() == (y + 1).stride() == y.clone().stride() == y.stride()
    assert F.relu(x).stride() == x.stride()
    assert not F.conv2d(y, fastnn.randn(3, 1, 3, 3)).is_contiguous()
    empty = fastnn.empty(0, 3, 4, 5, memory_format=LAST)
    assert empty.to(memory_format=LAST).shape == (empty + 1).shape == empty.shape
    assert fastnn.empty(4, 3, 1, 1, memory_format=LAST).stride() == (3, 1, 3, 3)


def test_gradients_of_conversions():
    x = image(2, 3, 4, 5).requires_grad_()
    weight = image(2, 3, 4, 5)
    for convert in (x.to, x.contiguous, x.clone):
        (gradient,) = fastnn.autograd.grad((convert(memory_format=LAST) * weight).sum(), x)
        np.testing.assert_array_equal(gradient.numpy(), weight.numpy())


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_mixed_layouts(first, second):
    """The first operand of the result's shape decides; joined images keep the format that all of them have."""
    a, b, mask = image(2, 3, 4, 5, last=first), image(2, 3, 4, 5, last=second), image(2, 3, 4, 5, last=first) > 0
    for y in (a + b, a * b, fastnn.maximum(a, b), a > b, fastnn.where(mask, a, b)):
        assert is_last(y) == first
    assert is_last(fastnn.randn(3, 1, 1) + b) == is_last(2 - b) == is_last(fastnn.exp(b)) == second
    assert is_last(fastnn.cat([a, b], 1)) == (first and second)
    np.testing.assert_array_equal((a + b).numpy(), a.numpy() + b.numpy())
    np.testing.assert_array_equal(fastnn.where(mask, a, b).numpy(), np.where(mask.numpy(), a.numpy(), b.numpy()))
    np.testing.assert_array_equal(fastnn.cat([a, b], 1).numpy(), np.concatenate([a.numpy(), b.numpy()], 1))


@pytest.mark.torch
def test_layouts_are_those_of_torch():
    import torch

    operations = {
        "add": lambda lib, a, b: a + b,
        "scalar": lambda lib, a, b: 2 * b,
        "broadcast": lambda lib, a, b: lib.ones(1, a.shape[1], 1, 1) + b,
        "where": lambda lib, a, b: lib.where(a > 0, a, b),
        "cat": lambda lib, a, b: lib.cat([a, b], 1),
        "conv": lambda lib, a, b: lib.nn.Conv2d(a.shape[1], 4, 3, padding=1)(b),
        "conv of a converted layer": lambda lib, a, b: lib.nn.Conv2d(a.shape[1], 4, 3, padding=1).to(
            memory_format=lib.channels_last
        )(a),
        "pool": lambda lib, a, b: lib.nn.functional.max_pool2d(b, 2),
        "batch_norm": lambda lib, a, b: lib.nn.BatchNorm2d(a.shape[1])(b),
        "dropout": lambda lib, a, b: lib.nn.functional.dropout(b, 0.5),
        "pad": lambda lib, a, b: lib.nn.functional.pad(b, (1, 2, 0, 1)),
        "flip": lambda lib, a, b: b.flip(2),
        "clone": lambda lib, a, b: b.clone(),
        "to": lambda lib, a, b: b.to(lib.float64),
    }
    for shape in ((2, 3, 4, 6), (2, 1, 4, 6), (1, 8, 2, 2)):
        for name, operation in operations.items():
            if shape[1] == 1 and name in ("add", "where", "batch_norm", "dropout"):
                continue  # there torch's elementwise operations differ among themselves
            for formats in (("contiguous_format", "channels_last"), ("channels_last", "contiguous_format")):
                strides = [
                    operation(lib, *(lib.ones(*shape).to(memory_format=getattr(lib, f)) for f in formats)).stride()
                    for lib in (fastnn, torch)
                ]
                assert strides[0] == strides[1], f"{name} {shape} {formats}"


class Block(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.seen: list[fastnn.Tensor] = []

    def forward(self, x):
        y = self.conv(x)
        z = F.relu(self.bn(y)) + x
        self.seen = [y, z, F.max_pool2d(z, 2), F.avg_pool2d(z, 2)]
        return self.seen[2] + self.seen[3]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_block_keeps_the_format(dtype):
    """Forward and backward, with the numbers of the row-major block."""
    plain = Block().to(getattr(fastnn, dtype))
    x = image(2, 8, 6, 6).to(getattr(fastnn, dtype))
    results = []
    for block, leaf in ((plain, x.clone()), (copy.deepcopy(plain).to(memory_format=LAST), x.to(memory_format=LAST))):
        y = block(leaf.requires_grad_())
        last = leaf is not x and is_last(leaf)
        assert all(is_last(t) == last for t in (*block.seen, y))
        (y * y).sum().backward()
        assert is_last(leaf.grad) == last
        for parameter in block.parameters():
            assert parameter.grad.stride() == parameter.stride()
        tensors = (y.detach(), leaf.grad, *(p.grad for p in block.parameters()))
        results.append([t.double().numpy() for t in tensors])
    assert plain.conv.weight.is_contiguous()
    # Three sums of 72 terms behind one another, in another order: convolution, statistics, weight gradient.
    roundoff = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}[dtype]
    for row_major, last in zip(*results, strict=True):
        np.testing.assert_allclose(last, row_major, rtol=0, atol=3 * 72 * roundoff * max(1.0, np.abs(row_major).max()))


def test_the_listing():
    """The two lines that PyTorch's tutorial has users add, and a training step behind them."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten(),
        nn.Linear(36, 3),
    )  # fmt: skip
    x, target = fastnn.randn(4, 1, 8, 8), fastnn.tensor([0, 1, 2, 0])
    reference, plain_x = copy.deepcopy(model), x

    model = model.to(memory_format=fastnn.channels_last)
    x = x.to(memory_format=fastnn.channels_last)

    assert all(is_last(p) for p in model.parameters() if p.dim() == 4)
    for net, given in ((reference, plain_x), (model, x)):
        optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(net(given), target).backward()
            optimizer.step()
    assert model[0].weight.stride() == (9, 1, 3, 1) and model[4].weight.stride() == (8, 1, 8, 8)
    for ours, theirs in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        # The first sums, of up to 144 terms, in another order, then three steps: some 1000 roundings of numbers near 1.
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1000 * 2.0**-24)
    assert model.to(fastnn.float64, memory_format=fastnn.contiguous_format)[0].weight.stride() == (9, 9, 3, 1)
    restored = copy.deepcopy(reference)
    restored.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(restored[0].weight.detach().numpy(), model[0].weight.detach().numpy())


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_that_stay_are_kept_and_follow_changes(groups):
    """A channels_last weight has a row-major copy kept with it from the second call on: it must never be stale."""
    x, weight = image(1, 64, 12, 12, last=True), image(64, 64 // groups, 3, 3, last=True)

    def check():
        y = F.conv2d(x, weight, padding=1, groups=groups)
        expected = F.conv2d(x.double().contiguous(), weight.double().contiguous(), padding=1, groups=groups)
        bound = 2.0**-24 * 577 * F.conv2d(x.abs().double(), weight.abs().double(), padding=1, groups=groups)
        assert is_last(y) and ((y.double() - expected).abs() <= bound).all()

    for _ in range(4):
        check()
    bad = x.clone()
    bad[0, 0, 3, 3] = float("inf")
    weight.add_(1)
    for given in (bad, bad, x):
        y = F.conv2d(given, weight, padding=1, groups=groups)
        finite = fastnn.isfinite(y)
        assert finite[:, -1].all() if groups == 2 and given is bad else finite.all() == (given is x)
    for _ in range(2):
        check()
    weight.numpy()[...] *= 0.5
    for _ in range(3):
        check()


def test_an_infinity_in_one_group_leaves_the_kept_weights_of_the_others_right():
    x, weight = image(1, 128, 16, 16), fastnn.randn(128, 64, 3, 3)
    bad = x.clone()
    bad[0, 0, 0, 0] = float("inf")
    first = F.conv2d(x, weight, padding=1, groups=2)
    F.conv2d(bad, weight, padding=1, groups=2)
    for _ in range(2):
        np.testing.assert_array_equal(F.conv2d(x, weight, padding=1, groups=2).numpy(), first.numpy())
