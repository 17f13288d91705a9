"""How a tensor prints: numpy formats the numbers, in PyTorch's frame."""

import numpy as np

from fastnn import _C
from fastnn._C import Tensor

_IMPLIED = (_C.float32, _C.int64, _C.bool)  # not named in the text: the numbers show them


def tensor_repr(x: Tensor) -> str:
    """The text of ``repr(x)``, such as ``tensor([1., 2.], requires_grad=True)``."""
    plain = x.detach().cpu()
    values = (plain.float() if plain.dtype is _C.bfloat16 else plain).numpy()
    prefix = "tensor("
    notes = [np.array2string(values, separator=", ", precision=4, prefix=prefix, threshold=1000)]
    if x.numel() == 0 and x.ndim != 1:
        notes.append(f"size={tuple(x.shape)}")
    if x.dtype not in _IMPLIED or (x.numel() == 0 and x.dtype is not _C.float32):
        notes.append(f"dtype={x.dtype}")
    if x.is_cuda:
        notes.append(f"device='{x.device}'")
    if x.grad_fn is not None:
        notes.append(f"grad_fn=<{x.grad_fn.name()}>")
    elif x.requires_grad:
        notes.append("requires_grad=True")
    return prefix + ", ".join(notes) + ")"
