"""Every operation of the table: values, gradients, strides, threads, messages, leaks, and parity with torch."""

import gc
import warnings

import numpy as np
import pytest

import fastnn
from cases import BY_NAME, CASES, RANDOM_CASES
from cases.case import Case, rounded, to_numpy, to_tensor
from helpers import (
    as_list,
    backward_of,
    central_difference,
    check_rounding,
    check_values,
    cotangents,
    float_arrays,
    floating,
    gradients,
    layouts,
    recorded,
    replace,
    tensors,
)


def each(wanted=lambda case: True, dtypes=None):
    """Cases, or pairs of case and dtype."""
    chosen = [case for case in CASES if wanted(case)]
    if dtypes is None:
        return pytest.mark.parametrize("case", chosen, ids=str)
    pairs = [(case, dtype) for case in chosen for dtype in dtypes(case)]
    return pytest.mark.parametrize("case, dtype", pairs, ids=[f"{case}-{dtype}" for case, dtype in pairs])


def differentiable(case):
    return case.differentiable is not False and "float64" in case.dtypes


# ---- values ---------------------------------------------------------------------------------------


@each(dtypes=lambda case: case.dtypes)
def test_value(case: Case, dtype: str) -> None:
    for sample in case.samples:
        check_values(
            case, case.run(fastnn, *tensors(sample.args, dtype), **sample.kwargs), dtype, sample.args, sample.kwargs
        )


@each(lambda case: case.integers, lambda case: case.integers)
def test_integers(case: Case, dtype: str) -> None:
    for sample in case.samples:
        result = case.run(fastnn, *tensors(sample.args, dtype), **sample.kwargs)
        with np.errstate(all="ignore"):
            expected = as_list(case.reference(*[rounded(a, dtype) for a in sample.args], **sample.kwargs))
        for got, want in zip(as_list(to_numpy(result)), expected, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=f"{case} {sample.kwargs}")


@each(lambda case: case.specials, lambda case: case.dtypes)
def test_specials(case: Case, dtype: str) -> None:
    """NaN, infinities and signed zeros go where numpy sends them."""
    for sample in case.specials:
        check_values(
            case, case.run(fastnn, *tensors(sample.args, dtype), **sample.kwargs), dtype, sample.args, sample.kwargs
        )


ODD = [
    "neg",
    "floor",
    "ceil",
    "trunc",
    "round",
    "sin",
    "tan",
    "asin",
    "atan",
    "sinh",
    "tanh",
    "erf",
    "expm1",
    "log1p",
    "softsign",
]


@pytest.mark.parametrize("name", [*ODD, "abs", "sqrt", "add", "sub", "mul", "div"])
def test_sign_of_zero(name: str) -> None:
    case = BY_NAME[name]
    second = np.array([1.0, 1, -1, -1]) if name == "div" else np.array([0.0, 0.0, -0.0, -0.0])
    args = [np.array([0.0, -0.0, 0.0, -0.0]), second][: len(case.samples[0].args)]
    for dtype in case.dtypes:
        result = to_numpy(case.run(fastnn, *tensors(args, dtype)))
        np.testing.assert_array_equal(np.signbit(result), np.signbit(case.reference(*args)), err_msg=dtype)


# ---- gradients ------------------------------------------------------------------------------------


@each(differentiable)
def test_gradient(case: Case) -> None:
    """Backward against central differences of the forward, in float64."""
    for sample in case.samples:
        arrays = float_arrays(case, sample.args)
        actual = backward_of(case, sample.args, sample.kwargs, "float64")
        for array, gradient in zip(arrays, actual, strict=True):
            assert gradient.shape == array.shape, f"{case}: gradient of shape {gradient.shape} for {array.shape}"

            def weighted_sum(moved, array=array, sample=sample):
                with fastnn.no_grad():
                    outputs = floating(
                        case.run(fastnn, *tensors(replace(sample.args, array, moved), "float64"), **sample.kwargs)
                    )
                return sum(
                    float((to_numpy(y) * to_numpy(w)).sum())
                    for y, w in zip(outputs, cotangents(outputs, "float64"), strict=True)
                )

            scale = 1 + abs(weighted_sum(array)) if array.size else 1
            positions, expected = central_difference(weighted_sum, array)
            np.testing.assert_allclose(
                gradient.flat[positions] if array.size else [],
                expected,
                rtol=1e-6,
                atol=2e-8 * scale,
                err_msg=f"{case} {sample.kwargs}",
            )


@each(differentiable, lambda case: [d for d in case.dtypes if d != "float64"])
def test_gradient_rounding(case: Case, dtype: str) -> None:
    """Backward in the smaller types against backward in float64 of the same rounded inputs."""
    for sample in case.samples:
        check_rounding(case, sample.args, sample.kwargs, dtype)


@each(differentiable)
def test_second_gradient(case: Case) -> None:
    """The gradient of the gradient is right, or a RuntimeError says that there is none."""
    sample = case.samples[0]
    arrays = float_arrays(case, sample.args)

    def first_gradient(args, create_graph=False):
        built, leaves = recorded(case, args, "float64")
        outputs = floating(case.run(fastnn, *built, **sample.kwargs))
        return leaves, gradients(fastnn, outputs, leaves, cotangents(outputs, "float64"), create_graph)

    def weighted_sum(args):
        _, grads = first_gradient(args)
        return sum(
            float((to_numpy(g) * to_numpy(w)).sum()) for g, w in zip(grads, cotangents(grads, "float64"), strict=True)
        )

    try:
        leaves, grads = first_gradient(sample.args, create_graph=True)
        second = gradients(fastnn, grads, leaves, cotangents(grads, "float64"))
    except RuntimeError as refusal:
        assert "create_graph" in str(refusal) or "second derivative" in str(refusal), str(refusal)
        return
    for array, gradient in zip(arrays, second, strict=True):
        scale = 1 + abs(weighted_sum(sample.args))
        positions, expected = central_difference(
            lambda moved, array=array: weighted_sum(replace(sample.args, array, moved)), array, most=12
        )
        np.testing.assert_allclose(
            to_numpy(gradient).flat[positions], expected, rtol=1e-5, atol=1e-7 * scale, err_msg=str(case)
        )


@each(lambda case: case.differentiable is False and "float64" in case.dtypes)
def test_not_differentiable(case: Case) -> None:
    """Without a backward there is an error or a result without a history, never a silent zero."""
    sample = case.samples[0]
    args = [
        a.requires_grad_() if hasattr(a, "requires_grad_") and a.is_floating_point() else a
        for a in tensors(sample.args, "float64")
    ]
    try:
        results = as_list(case.run(fastnn, *args, **sample.kwargs))
    except RuntimeError as refusal:
        assert case.name in str(refusal)
        return
    assert not any(y.requires_grad for y in results if hasattr(y, "requires_grad"))


# ---- layouts, methods, in-place forms ---------------------------------------------------------------


@each(lambda case: case.family != "optim", lambda case: case.dtypes)  # a step wants states laid out as their parameter
def test_strided(case: Case, dtype: str) -> None:
    """Transposed, stepped, offset and reversed arguments give what contiguous ones give."""
    for sample in case.samples[:4]:
        for array in [a for group in sample.args for a in as_list(group) if isinstance(a, np.ndarray)]:
            for layout, strided in layouts(to_tensor(fastnn, array, dtype)):
                args = tensors(replace(sample.args, array, strided), dtype)
                try:
                    result = case.run(fastnn, *args, **sample.kwargs)
                except RuntimeError as refusal:  # a view that these strides do not allow says so
                    assert case.name == "view" and "view" in str(refusal)
                    continue
                try:
                    check_values(case, result, dtype, sample.args, sample.kwargs)
                except AssertionError as wrong:
                    raise AssertionError(f"{layout}: {wrong}") from wrong


@each(differentiable)
def test_strided_gradient(case: Case) -> None:
    for sample in case.samples[:2]:
        expected = backward_of(case, sample.args, sample.kwargs, "float64")
        for k, array in enumerate(float_arrays(case, sample.args)):
            for layout, strided in layouts(to_tensor(fastnn, array, "float64")):
                if case.name == "view":
                    continue
                leaf = strided.detach().requires_grad_()
                outputs = floating(
                    case.run(fastnn, *tensors(replace(sample.args, array, leaf), "float64"), **sample.kwargs)
                )
                (gradient,) = gradients(fastnn, outputs, [leaf], cotangents(outputs, "float64"))
                np.testing.assert_allclose(
                    to_numpy(gradient), expected[k], rtol=1e-12, atol=1e-13, err_msg=f"{case} {layout}"
                )


@each(differentiable)
def test_expanded(case: Case) -> None:
    """An argument with a stride of 0: the value of its copy, and a gradient that adds up over the repeats."""
    sample = case.samples[0]
    for array in float_arrays(case, sample.args):
        if array.ndim == 0 or array.shape[0] < 2 or case.name == "view":
            continue
        results, sums = [], []
        for make in (lambda x: x, lambda x: x.contiguous()):
            leaf = to_tensor(fastnn, array[:1], "float64").requires_grad_()
            args = tensors(replace(sample.args, array, make(leaf.expand(*array.shape))), "float64")
            outputs = floating(case.run(fastnn, *args, **sample.kwargs))
            results.append([to_numpy(y) for y in outputs])
            sums.append(to_numpy(gradients(fastnn, outputs, [leaf], cotangents(outputs, "float64"))[0]))
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-14, err_msg=str(case))
        np.testing.assert_allclose(*sums, rtol=1e-12, atol=1e-13, err_msg=str(case))


@each(
    lambda case: case.call is None and not case.path and hasattr(fastnn.Tensor, case.name) and case.family != "create"
)
def test_method(case: Case) -> None:
    """x.name(...) is name(x, ...)."""
    for sample in case.samples[:3]:
        first, *rest = tensors(sample.args, case.dtypes[0] if case.dtypes else "int64")
        if not isinstance(first, fastnn.Tensor):
            continue
        by_method = as_list(getattr(first, case.name)(*rest, **sample.kwargs))
        by_function = as_list(case.run(fastnn, first, *rest, **sample.kwargs))
        for one, other in zip(by_method, by_function, strict=True):
            np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@each(lambda case: case.inplace)
def test_inplace(case: Case) -> None:
    """x.name_(...) changes x itself into name(x, ...), with the same gradient, and counts a version."""
    for sample in case.samples:
        args = tensors(sample.args, "float64")
        expected = case.run(fastnn, *args, **sample.kwargs)
        if tuple(expected.shape) != tuple(args[0].shape):
            continue
        changed = args[0].clone()
        result = getattr(changed, case.name + "_")(*args[1:], **sample.kwargs)
        assert result is changed
        assert changed._version > 0
        np.testing.assert_array_equal(to_numpy(changed), to_numpy(expected))
        leaf = args[0].clone().requires_grad_()
        written = getattr(leaf * 1, case.name + "_")(*args[1:], **sample.kwargs)
        (actual,) = gradients(fastnn, [written], [leaf], cotangents([written], "float64"))
        plain = case.run(fastnn, leaf, *args[1:], **sample.kwargs)
        (wanted,) = gradients(fastnn, [plain], [leaf], cotangents([plain], "float64"))
        np.testing.assert_allclose(to_numpy(actual), to_numpy(wanted), rtol=1e-14, atol=1e-15)


# ---- threads, leaks, messages -----------------------------------------------------------------------


@each(lambda case: case.large is not None, lambda case: [d for d in ("float32", "bfloat16") if d in case.dtypes])
def test_threads_bit_equal(case: Case, dtype: str) -> None:
    """1, 2 and 4 threads give the same bits, forward and backward."""
    args, outcomes = case.large(), []
    for threads in (1, 2, 4):
        fastnn.set_num_threads(threads)
        results = [to_numpy(y) for y in as_list(case.run(fastnn, *tensors(args, dtype)))]
        if differentiable(case):
            results += backward_of(case, args, {}, dtype)
        outcomes.append([r.tobytes() for r in results])
    assert outcomes[0] == outcomes[1], f"{case}: 2 threads differ from 1"
    assert outcomes[0] == outcomes[2], f"{case}: 4 threads differ from 1"


@each()
def test_no_leak(case: Case) -> None:
    """Calls, backward passes and errors leave no memory behind."""

    def once() -> None:
        for sample in case.samples[:2]:
            dtype = case.dtypes[0] if case.dtypes else "int64"
            if differentiable(case):
                backward_of(case, sample.args, sample.kwargs, dtype)
            else:
                case.run(fastnn, *tensors(sample.args, dtype), **sample.kwargs)
        for bad in case.errors[:1]:
            with pytest.raises(bad.kind):
                case.run(fastnn, *tensors(bad.args, None), **bad.kwargs)

    once()
    gc.collect()
    before = fastnn.memory_stats()["allocated"]
    for _ in range(20):
        once()
    gc.collect()
    assert fastnn.memory_stats()["allocated"] == before


ERRORS = [(case, error) for case in CASES for error in case.errors]


@pytest.mark.parametrize("case, error", ERRORS, ids=[f"{case}-{i}" for i, (case, _) in enumerate(ERRORS)])
def test_error(case: Case, error) -> None:
    """A bad call names the operation and the numbers, and the next good one works."""
    with pytest.raises(error.kind, match=f"(?s){error.pattern}"):
        case.run(fastnn, *tensors(error.args, None), **error.kwargs)
    sample = case.samples[0]
    case.run(fastnn, *tensors(sample.args, case.dtypes[0] if case.dtypes else "int64"), **sample.kwargs)


# ---- torch ------------------------------------------------------------------------------------------


def parity(case):
    return case.torch is not False


@pytest.mark.torch
@each(parity, lambda case: [d for d in (*case.dtypes, *case.integers) if d != "bfloat16"])
def test_like_torch(case: Case, dtype: str) -> None:
    """The same shapes, dtypes and values as torch, and in float64 the same gradients."""
    import torch

    for sample in case.samples:
        ours = as_list(case.run(fastnn, *tensors(sample.args, dtype), **sample.kwargs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's opinions on padding="same" and on the mean of kl_div
            theirs = as_list(case.run(torch, *tensors(sample.args, dtype, torch), **sample.kwargs))
        for y, t in zip(ours, theirs, strict=True):
            assert str(y.dtype).split(".")[-1] == str(t.dtype).split(".")[-1], f"{case}: {y.dtype}, torch has {t.dtype}"
            if t.dtype == torch.float32:
                continue  # two roundings apart: the reference decides
            if t.is_floating_point():
                np.testing.assert_allclose(to_numpy(y), to_numpy(t), rtol=1e-11, atol=1e-12, err_msg=str(case))
            else:
                np.testing.assert_array_equal(to_numpy(y), to_numpy(t), err_msg=str(case))
        if dtype == "float64" and differentiable(case):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pairs = zip(
                    *[backward_of(case, sample.args, sample.kwargs, dtype, lib) for lib in (fastnn, torch)], strict=True
                )
            for ours_gradient, theirs_gradient in pairs:
                np.testing.assert_allclose(ours_gradient, theirs_gradient, rtol=1e-10, atol=1e-11, err_msg=str(case))


# ---- the table itself -------------------------------------------------------------------------------

# Functions of fastnn._C that compute nothing on tensors: questions, modes, memory, exchange.
NOT_OPERATIONS = {
    "anomaly_mode",
    "apply_function",
    "as_tensor",
    "asarray",
    "backward",
    "compiler",
    "cpu_level",
    "cpu_levels",
    "device",
    "dtype",
    "empty",
    "empty_cache",
    "empty_like",
    "from_dlpack",
    "from_numpy",
    "get_float32_matmul_precision",
    "get_num_threads",
    "get_rng_state",
    "gradients",
    "initial_seed",
    "is_floating_point",
    "is_grad_enabled",
    "is_inference_mode",
    "is_tensor",
    "is_winograd_enabled",
    "manual_seed",
    "memory_format",
    "memory_stats",
    "num_threads_source",
    "numel",
    "promote_types",
    "reset_peak_memory_stats",
    "result_type",
    "set_anomaly_mode",
    "set_cache_limit",
    "set_float32_matmul_precision",
    "set_grad_enabled",
    "set_inference_mode",
    "set_num_threads",
    "set_rng_state",
    "set_winograd_enabled",
    "tensor",
    "detach",
    "CUDAGraph",
    "CudaDeviceProperties",
    "CudaGraphPool",
    "DeviceError",
    "Event",
    "Generator",
    "Node",
    "OutOfMemoryError",
    "RemovableHandle",
    "Stream",
    "Tensor",
}
# Forms without a backward of operations that have cases: tests/test_fused.py holds them to those.
FUSED = {"fused_conv2d", "fused_linear"}


def test_every_operation_has_a_case() -> None:
    """A new name in fastnn._C needs a case, or a place in the list above."""
    covered = {name for case in CASES for name in (case.name, *case.covers)}
    covered |= {case.name for case in RANDOM_CASES}
    covered |= {f"{case.name}_" for case in CASES if case.inplace}
    names = [name for name in dir(fastnn._C) if not name.startswith(("_", "cuda_"))]
    exported = {name for name in names if callable(getattr(fastnn._C, name))}
    assert sorted(exported - covered - NOT_OPERATIONS - FUSED) == []
    assert sorted(NOT_OPERATIONS - exported) == [], "names that are gone"
