"""How a tensor is shown. Called by the C++ type, and only then imported."""

import numpy as np

from fastnn import _C
from fastnn._C import Tensor

_PLAIN = (_C.float32, _C.int64, _C.bool)  # shown without their name


def tensor_repr(x: Tensor) -> str:
    """For example ``tensor([1., 2.], requires_grad=True)``; long tensors are shortened, as numpy's are."""
    values = x.detach().cpu()
    array = (values.float() if x.dtype is _C.bfloat16 else values).numpy()
    body = np.array2string(array, precision=4, separator=", ", prefix="tensor(", threshold=1000)
    parts = ["[]" if x.numel() == 0 else body]
    if x.numel() == 0 and tuple(x.shape) != (0,):
        parts.append(f"size={tuple(x.shape)}")
    if x.device.type != "cpu":
        parts.append(f"device='{x.device}'")
    if x.dtype not in _PLAIN:
        parts.append(f"dtype={x.dtype}")
    if x.grad_fn is not None:
        parts.append(f"grad_fn={x.grad_fn}")
    elif x.requires_grad:
        parts.append("requires_grad=True")
    return f"tensor({', '.join(parts)})"
