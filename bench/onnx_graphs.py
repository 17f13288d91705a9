"""Rows of the race as ONNX graphs: the weight is a constant, as in inference, so that the runtime packs it once."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from cases.case import BenchRow

Node = tuple[str, dict[str, Any]]  # the operator and its attributes


def _pair(value: Any, n_axes: int) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value] * n_axes


def _product(arrays: tuple[Any, ...], transposed: tuple[int, ...]) -> Node:
    return ("Gemm", {"transA": int(0 in transposed)}) if arrays[0].ndim == 2 else ("MatMul", {})


def _conv(arrays: tuple[Any, ...], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Node:
    n = arrays[0].ndim - 2
    shape = {"strides": _pair(stride, n), "pads": _pair(padding, n) * 2, "dilations": _pair(dilation, n)}
    return "Conv", {**shape, "group": groups}


def _pool(
    operator: str, arrays: tuple[Any, ...], kernel: Any, stride: Any = None, padding: Any = 0, **others: Any
) -> Node | None:
    n = arrays[0].ndim - 2
    if others:
        return None
    shape = {"kernel_shape": _pair(kernel, n), "strides": _pair(stride or kernel, n), "pads": _pair(padding, n) * 2}
    return operator, {**shape, "count_include_pad": 1} if operator == "AveragePool" else shape


def _global_pool(operator: str, size: Any) -> Node | None:
    return (operator, {}) if np.all(np.asarray(size) == 1) else None


def _node(name: str, row: BenchRow, arrays: tuple[Any, ...], others: list[Any]) -> Node | None:
    """The operator of a case; None where there is none."""
    if name == "matmul":
        return _product(arrays, row.transposed)
    if name == "linear":
        return "Gemm", {"transB": 1}
    if name in ("conv1d", "conv2d"):
        return _conv(arrays, **row.kwargs)
    if name in ("max_pool2d", "avg_pool2d"):
        return _pool({"m": "MaxPool", "a": "AveragePool"}[name[0]], arrays, *others, **row.kwargs)
    if name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        return _global_pool("GlobalAveragePool" if "avg" in name else "GlobalMaxPool", *others)
    return None


def session(runtime: ModuleType, model: bytes, threads: int) -> Any:
    """The model on the CPU, with as many threads as the others; they sleep between calls."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def row_call(runtime: ModuleType, name: str, row: BenchRow, threads: int) -> Callable[[], Any] | None:
    """The row as a call of ONNX Runtime; None where it is not float32 forward or has no operator."""
    if row.backward or row.dtype != "float32":
        return None
    values = row.make()
    arrays = tuple(v.astype(np.float32) for v in values if isinstance(v, np.ndarray) and v.dtype == np.float64)
    found = _node(name, row, arrays, [v for v in values if v is not None and not isinstance(v, np.ndarray)])
    if found is None:
        return None
    from onnx import TensorProto, checker, helper, numpy_helper

    operator, attributes = found
    data = np.ascontiguousarray(arrays[0].swapaxes(-1, -2) if 0 in row.transposed else arrays[0])
    names = ["x", *[f"constant{i}" for i in range(1, len(arrays))]]
    constants = [numpy_helper.from_array(a, n) for a, n in zip(arrays[1:], names[1:], strict=True)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **attributes)],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, data.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * data.ndim)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    ready = session(runtime, model.SerializeToString(), threads)
    return lambda: ready.run(None, {"x": data})
