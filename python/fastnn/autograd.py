"""Automatic differentiation from Python: modes, ``grad``, ``backward``, custom functions, and gradcheck.

The tape itself is in C++ (csrc/core/autograd.h); what is here switches it, asks it, or extends it.
"""

import functools
import inspect
from collections.abc import Callable, Generator, Sequence
from typing import Any, Self

import numpy as np

from fastnn import _C
from fastnn._C import Tensor, is_grad_enabled

__all__ = [
    "Function",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]


AnyGenerator = Generator[Any, Any, Any]


class _Mode:
    """A switch that is a context manager and a decorator. ``_set`` returns what was before."""

    def _set(self, value: Any) -> Any:
        raise NotImplementedError

    def __init__(self, value: Any) -> None:
        self._value = value
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._before.append(self._set(self._value))
        return self

    def __exit__(self, *exception: object) -> None:
        self._set(self._before.pop())

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        wrap = self._wrap_generator if inspect.isgeneratorfunction(function) else self._wrap_function
        return functools.wraps(function)(wrap(function))

    def _fresh(self) -> "_Mode":
        """The same switch with a memory of its own: a decorated function may run in several threads."""
        mode = object.__new__(type(self))
        _Mode.__init__(mode, self._value)
        return mode

    def _wrap_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._fresh():
                return function(*args, **kwargs)

        return wrapped

    def _wrap_generator(self, function: Callable[..., AnyGenerator]) -> Callable[..., AnyGenerator]:
        """The mode holds while the generator runs, not while its caller does."""

        def wrapped(*args: Any, **kwargs: Any) -> AnyGenerator:
            generator, sent, mode = function(*args, **kwargs), None, self._fresh()
            try:
                while True:
                    with mode:
                        item = generator.send(sent)
                    sent = yield item
            except StopIteration as stop:
                return stop.value
            finally:
                generator.close()

        return wrapped


class _GradMode(_Mode):
    def _set(self, value: bool) -> bool:
        before = _C.is_grad_enabled()
        _C.set_grad_enabled(value)
        return before


class no_grad(_GradMode):
    """``with no_grad():`` or ``@no_grad()``: operations inside are not recorded."""

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(_GradMode):
    """``with enable_grad():`` or ``@enable_grad()``: operations inside are recorded, also within ``no_grad``."""

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self) -> None:
        super().__init__(True)


class set_grad_enabled(_GradMode):
    """``set_grad_enabled(flag)`` switches at once; as a context manager it restores what was before."""

    def __init__(self, mode: bool) -> None:
        super().__init__(bool(mode))
        self._before.append(self._set(self._value))

    def __enter__(self) -> Self:
        return self

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._set(self._before.pop())  # as a decorator it acts during the call only
        return (enable_grad if self._value else no_grad)()(function)


class inference_mode(_Mode):
    """Like ``no_grad``, and ``enable_grad`` inside does not switch recording on again."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__((bool(mode), not mode and _C.is_grad_enabled()))

    def _set(self, value: tuple[bool, bool]) -> tuple[bool, bool]:
        before = _C.is_inference_mode(), _C.is_grad_enabled()
        _C.set_inference_mode(value[0])
        _C.set_grad_enabled(value[1])
        return before


class detect_anomaly(_Mode):
    """``with detect_anomaly():`` a gradient that becomes NaN raises, naming the operation and where it was called."""

    def __init__(self, check_nan: bool = True) -> None:
        super().__init__(bool(check_nan))

    def _set(self, value: bool) -> bool:
        before = _C.anomaly_mode()
        _C.set_anomaly_mode(value)
        return before


def _as_list(tensors: Tensor | Sequence[Any]) -> list[Any]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _gradients_of(outputs: list[Tensor], given: Tensor | Sequence[Tensor | None] | None) -> list[Any]:
    """One for each output; None where it was left out."""
    if given is None:
        return [None] * len(outputs)
    grads = _as_list(given)
    if len(grads) != len(outputs):
        raise ValueError(f"got {len(grads)} gradients for {len(outputs)} outputs")
    return grads


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Accumulates the gradients of ``tensors`` into the ``.grad`` of the leaves.

    A gradient may be left out for a scalar. RuntimeError for a non-scalar without one, and for a
    graph already used up by an earlier backward without ``retain_graph``.
    """
    outputs = _as_list(tensors)
    retain = create_graph if retain_graph is None else retain_graph
    _C.backward(outputs, _gradients_of(outputs, grad_tensors), retain, create_graph)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``outputs`` with respect to ``inputs``; every ``.grad`` stays as it is.

    An input that was not used raises RuntimeError, or gives None with ``allow_unused``.
    """
    results = _as_list(outputs)
    retain = create_graph if retain_graph is None else retain_graph
    grads = _gradients_of(results, grad_outputs)
    return tuple(_C.gradients(results, grads, _as_list(inputs), retain, create_graph, allow_unused))


class FunctionContext:
    """What a custom function's forward leaves for its backward. Any attribute may be set on it."""

    # Read by the extension after forward; it keeps the tensors and hands them back to backward, so
    # that a saved result does not hold the graph that holds this context.
    _to_save: tuple[Tensor | None, ...] = ()
    _non_differentiable: tuple[Tensor, ...] = ()
    saved_tensors: tuple[Tensor | None, ...] = ()

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keeps tensors for the backward, where ``saved_tensors`` has them.

        Changing one in place after the forward is found in the backward and raises RuntimeError.
        """
        self._to_save = tensors

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        """These outputs get no gradient history."""
        self._non_differentiable = outputs


class Function:
    """An operation written in Python with its own backward.

    ``forward(ctx, *args)`` computes under ``no_grad`` and returns a tensor or a tuple of tensors;
    ``backward(ctx, *grads)`` returns one gradient (or None) for every argument of forward::

        class Exp(Function):
            @staticmethod
            def forward(ctx, x):
                y = x.exp()
                ctx.save_for_backward(y)
                return y

            @staticmethod
            def backward(ctx, dy):
                (y,) = ctx.saved_tensors
                return dy * y

        y = Exp.apply(x)
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        raise NotImplementedError("a Function needs a static method forward(ctx, *args)")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradients of forward's arguments from those of its results; to be overridden, as is ``forward``."""
        raise NotImplementedError("a Function needs a static method backward(ctx, *grads)")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Calls forward and records the function when an argument requires a gradient."""
        context = FunctionContext(tuple(isinstance(a, Tensor) and a.requires_grad for a in args))
        return _C.apply_function(cls, context, args)


def _numerical_jacobian(function: Callable[[], list[Tensor]], x: Tensor, eps: float) -> list[np.ndarray]:
    """d outputs / d x by central differences: one (x.numel, y.numel) matrix for each output."""
    values = x.detach().numpy()  # a view: writing here changes x
    columns: list[list[np.ndarray]] = []
    for index in np.ndindex(values.shape):
        before, sides = values[index], []
        for step in (eps, -eps):
            values[index] = before + step
            sides.append([y.detach().numpy().astype(np.float64).ravel() for y in function()])
        values[index] = before
        columns.append([(plus - minus) / (2 * eps) for plus, minus in zip(*sides, strict=True)])
    n_outputs = len(columns[0]) if columns else 0
    return [np.stack([column[k] for column in columns]) for k in range(n_outputs)]


def _analytical_jacobian(y: Tensor, x: Tensor) -> np.ndarray:
    """dy / dx by one backward for each element of y: a (x.numel, y.numel) matrix."""
    columns = []
    for index in range(y.numel()):
        one_hot = np.zeros(y.numel())
        one_hot[index] = 1
        dy = _C.tensor(one_hot, dtype=y.dtype, device=y.device).reshape(y.shape)
        (dx,) = grad(y, x, dy, retain_graph=True, allow_unused=True)
        columns.append(np.zeros(x.numel()) if dx is None else dx.detach().numpy().astype(np.float64).ravel())
    return np.stack(columns, axis=1) if columns else np.zeros((x.numel(), 0))


def gradcheck(
    func: Callable[..., Tensor | Sequence[Tensor | None]],
    inputs: Tensor | Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Compares the gradients of ``func(*inputs)`` with central differences.

    Inputs that require a gradient must be float64: the error of a central difference in float32 is
    larger than any useful tolerance. Returns True; on a mismatch raises RuntimeError with both
    values, or returns False when ``raise_exception`` is off.
    """
    arguments = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    wanted = [(i, x) for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.requires_grad]
    if not wanted:
        raise ValueError("gradcheck: no input requires a gradient")
    for i, x in wanted:
        if x.dtype is not _C.float64:
            raise TypeError(f"gradcheck: input {i} is {x.dtype}; central differences need float64")

    def evaluate() -> list[Tensor]:
        return [y for y in _as_list(func(*arguments)) if y is not None and y.is_floating_point()]

    @no_grad()
    def evaluate_plainly() -> list[Tensor]:
        return evaluate()

    outputs = evaluate()
    for i, x in wanted:
        numerical = _numerical_jacobian(evaluate_plainly, x, eps)
        for k, expected in enumerate(numerical):
            y = outputs[k]
            actual = _analytical_jacobian(y, x) if y.requires_grad else np.zeros_like(expected)
            wrong = ~np.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
            if not wrong.any():
                continue
            if not raise_exception:
                return False
            row, column = (int(n) for n in np.argwhere(wrong)[0])
            raise RuntimeError(
                f"gradcheck: d output {k}[{column}] / d input {i}[{row}] is {actual[row, column]:.9g} by backward but "
                f"{expected[row, column]:.9g} by central differences ({int(wrong.sum())} of {wrong.size} differ)"
            )
    return True


def gradgradcheck(
    func: Callable[..., Tensor | Sequence[Tensor | None]],
    inputs: Tensor | Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """``gradcheck`` of the gradient of ``func``, with the same arguments, result and errors.

    The backward of ``func`` must be differentiable, else RuntimeError names the operation that is not.
    """
    arguments = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    wanted = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    with no_grad():
        shapes = [(y.shape, y.dtype) for y in _as_list(func(*arguments))]
    directions = [_C.randn(tuple(shape), dtype=dtype).requires_grad_() for shape, dtype in shapes]

    def gradient(*values: Any) -> tuple[Tensor | None, ...]:
        with enable_grad():
            outputs = _as_list(func(*values[: len(arguments)]))
            return grad(outputs, wanted, list(values[len(arguments) :]), create_graph=True)

    return gradcheck(gradient, [*arguments, *directions], eps, atol, rtol, raise_exception)
