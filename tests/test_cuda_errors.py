"""What goes wrong on a GPU is said: tensors of two devices, faults in data, failing kernels, forks."""

import os

import numpy as np
import pytest

import fastnn
from cases import CASES
from cases.case import Case, to_tensor
from helpers import gpu, passes

# ---- tensors of two devices -----------------------------------------------------------------------


@gpu
def test_tensors_of_two_devices_do_not_mix() -> None:
    with pytest.raises(RuntimeError, match="cuda"):
        fastnn.ones(3, device="cuda") + fastnn.ones(3)


# Indices and assigned values are moved to where the tensor is.
MOVES = ("copy_", "getitem", "setitem")
TWO_TENSORS = [
    case
    for case in CASES
    if sum(isinstance(a, np.ndarray) for a in case.samples[0].args) >= 2 and not case.name.startswith(MOVES)
]


@gpu
@pytest.mark.parametrize("case", TWO_TENSORS, ids=str)
def test_tensors_of_two_devices_are_refused(case: Case) -> None:
    """Names the devices and the shapes, before anything is computed."""
    sample = case.samples[0]
    dtype = "float32" if "float32" in case.dtypes else case.integers[0]
    arguments = [to_tensor(fastnn, a, dtype) for a in sample.args]
    for moved in (i for i, x in enumerate(arguments) if isinstance(x, fastnn.Tensor)):
        mixed = [x.cuda() if i == moved else x for i, x in enumerate(arguments)]
        others = [x for i, x in enumerate(arguments) if isinstance(x, fastnn.Tensor) and i != moved]
        if not any(x.dim() for x in others):
            continue
        with pytest.raises(fastnn.DeviceError, match=r"one of shape \(.*\) on c.* and one of shape \(.*\) on c"):
            case.run(fastnn, *mixed, **sample.kwargs)


# ---- faults in data -------------------------------------------------------------------------------


def test_a_fault_in_data_is_an_error_of_the_call_on_the_cpu() -> None:
    fastnn._C._check_none_found(fastnn.tensor(-1))
    with pytest.raises(IndexError, match="a fault at place 3"):
        fastnn._C._check_none_found(fastnn.tensor(3))


@gpu
def test_a_fault_in_data_is_an_error_of_the_next_wait_on_a_gpu() -> None:
    if os.environ.get("FASTNN_CUDA_SYNC") == "1":
        pytest.skip("there it is an error of the call")
    for place in [fastnn.tensor(place, device="cuda") for place in (-1, 3, -1, 7)]:
        fastnn._C._check_none_found(place)
    with pytest.raises(IndexError, match=r"a fault at place 3 \(found by the GPU after the call\)"):
        fastnn.cuda.synchronize()
    fastnn.cuda.synchronize()  # once is enough


# ---- in a process of its own ----------------------------------------------------------------------


@gpu
def test_a_forked_child_says_why_it_cannot() -> None:
    program = """
import os, fastnn
x = fastnn.ones(3, device="cuda")
child = os.fork()
if child == 0:
    try:
        x + 1
    except fastnn.DeviceError as error:
        print(error, flush=True)
    del x
    os._exit(0)
os.waitpid(child, 0)
print((x + 1).tolist())
"""
    assert "forked; start it with 'spawn'" in passes(program, timeout=120)


@gpu
def test_a_failing_kernel_is_an_error_of_the_next_wait_or_named_at_once() -> None:
    program = """
import fastnn

class FarAway:
    def __init__(self, x):
        self.__cuda_array_interface__ = {**x.__cuda_array_interface__, "shape": (2,), "strides": (1 << 44,)}

x = fastnn.ones(2, device="cuda")
far = fastnn.as_tensor(FarAway(x))
try:
    y = far + x
    print("asked")
    y.tolist()
except fastnn.DeviceError as error:
    print(error)
"""
    late = {"FASTNN_EMULATED_LATE_ERRORS": "1"}  # as on a GPU
    asked, error = passes(program, timeout=120, FASTNN_CUDA_SYNC="0", **late).splitlines()
    assert asked == "asked"
    assert "FASTNN_CUDA_SYNC=1 makes the error name its operation" in error
    assert passes(program, timeout=120, FASTNN_CUDA_SYNC="1", **late).startswith(
        "elementwise_binary: the CUDA kernel failed: "
    )
