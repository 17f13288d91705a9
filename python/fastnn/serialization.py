"""Saving and loading, by safetensors alone: no file that is read here can run code.

A flat ``{name: tensor}`` becomes a plain safetensors file that any other reader understands. Any
other tree of dicts, lists, tuples, numbers, strings and tensors is stored the same way with its
structure, as JSON, in the metadata. A file is written aside, synced and renamed, so a crash leaves
the old one whole.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn.module import IncompatibleKeys, Module

_STRUCTURE = "fastnn.structure"  # the metadata entry that holds the tree
_INDEX_SUFFIX = ".safetensors.index.json"

# safetensors' name -> (our dtype, the numpy dtype that carries its bytes)
_DTYPES = {
    "BOOL": (_C.bool, np.bool_),
    "U8": (_C.uint8, np.uint8),
    "I8": (_C.int8, np.int8),
    "I16": (_C.int16, np.int16),
    "I32": (_C.int32, np.int32),
    "I64": (_C.int64, np.int64),
    "F16": (_C.float16, np.float16),
    "BF16": (_C.bfloat16, np.int16),
    "F32": (_C.float32, np.float32),
    "F64": (_C.float64, np.float64),
}
_NAMES = {
    _C.bool: "bool",
    _C.uint8: "uint8",
    _C.int8: "int8",
    _C.int16: "int16",
    _C.int32: "int32",
    _C.int64: "int64",
    _C.float16: "float16",
    _C.bfloat16: "bfloat16",
    _C.float32: "float32",
    _C.float64: "float64",
}

# ---- the tree ---------------------------------------------------------------------------------------


class _Encoder:
    """Turns a tree into JSON, and collects its tensors under readable names."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}  # a tensor met twice is stored once
        self._above: list[int] = []

    def encode(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._name_of(value, path)}
        if isinstance(value, dict | list | tuple):
            if id(value) in self._above:
                raise ValueError(f"save: {path or 'the object'} contains itself")
            self._above.append(id(value))
            encoded = self._encode_container(value, path)
            self._above.pop()
            return encoded
        hint = "; save module.state_dict()" if isinstance(value, Module) else ""
        hint = "; make it a tensor with fastnn.from_numpy" if isinstance(value, np.ndarray | np.generic) else hint
        raise TypeError(
            f"save: {path or 'the object'} is a {type(value).__name__}; dict, list, tuple, numbers, strings, None and "
            f"tensors can be saved{hint}"
        )

    def _encode_container(self, value: Any, path: str) -> Any:
        def below(key: Any) -> str:
            return f"{path}.{key}" if path else str(key)

        if not isinstance(value, dict):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.encode(item, below(i)) for i, item in enumerate(value)]}
        for key in value:
            if not (key is None or isinstance(key, bool | int | float | str)):
                raise TypeError(f"save: key {key!r} of {path or 'the object'} must be a string or a number")
        return {"dict": [[key, self.encode(item, below(key))] for key, item in value.items()]}

    def _name_of(self, tensor: Tensor, path: str) -> str:
        if id(tensor) not in self._names:
            name, count = path or "tensor", 1
            while name in self.tensors or name == "__metadata__":
                count += 1
                name = f"{path}#{count}"
            self.tensors[name] = tensor
            self._names[id(tensor)] = name
        return self._names[id(tensor)]


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _is_flat(obj: Any) -> bool:
    return isinstance(obj, dict) and all(
        isinstance(k, str) and k != "__metadata__" and isinstance(v, Tensor) for k, v in obj.items()
    )


# ---- writing ------------------------------------------------------------------------------------------


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Writes a state_dict, or any tree of dicts, lists, tuples, numbers, strings, None and tensors.

    For example ``save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)``.
    """
    metadata = {"format": "pt"}  # the layout of the tensors is PyTorch's; some readers ask for this
    if _is_flat(obj):
        tensors = dict(obj)
    else:
        encoder = _Encoder()
        metadata[_STRUCTURE] = json.dumps(encoder.encode(obj, ""))
        tensors = encoder.tensors
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write_aside(Path(path), lambda temporary: safetensors.serialize_file(_specs(dense), temporary, metadata))


def _specs(tensors: Mapping[str, Tensor]) -> dict[str, safetensors.TensorSpec]:
    """What safetensors writes. It takes strided memory for dense (release 0.8.0), so the tensors must be dense."""
    return {
        name: safetensors.TensorSpec(
            dtype=_NAMES[t.dtype], shape=list(t.shape), data_ptr=t.data_ptr(), data_len=t.numel() * t.element_size()
        )
        for name, t in tensors.items()
    }


def _write_aside(path: Path, write: Callable[[str], None]) -> None:
    """Writes a temporary file in the same folder, syncs it, and renames it over ``path``."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        write(os.fspath(temporary))
        _sync(temporary)
        os.replace(temporary, target)
    except safetensors.SafetensorError as error:  # its writer wraps what the system reports
        temporary.unlink(missing_ok=True)
        raise OSError(f"{target} could not be written: {error}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading ------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> Any:
    """Reads what ``save`` wrote, any safetensors file, or a sharded one by its ``.safetensors.index.json``.

    ValueError, with the path, for a file that is damaged or of another kind.
    """
    file = Path(path)
    if file.name.endswith(_INDEX_SUFFIX):
        return _load_shards(file)
    content = file.read_bytes()
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ValueError(_why_not(file, content, error)) from None
    metadata = _metadata(file, content)
    tensors = {name: _tensor(file, name, entry) for name, entry in entries}
    if _STRUCTURE not in metadata:
        return tensors
    try:
        return _decode(json.loads(metadata[_STRUCTURE]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: the stored structure does not describe the tensors: {error!r}") from None


def _why_not(file: Path, content: bytes, error: Exception) -> str:
    """What a file that is not safetensors probably is, and what to do about it."""
    if content[:6] == b"\x93NUMPY":
        return f"{file} is a numpy file; fastnn.from_numpy(numpy.load(path)) makes it a tensor"
    if content[:4] == b"PK\x03\x04" or content[:1] == b"\x80" or file.suffix in (".pt", ".pth", ".pkl", ".pickle"):
        return (
            f"{file} is a pickle or an archive of pickles; reading one can run any code, so fastnn does not. "
            "Convert it where it is trusted: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        )
    return f"{file}: not a valid safetensors file: {error}"


def _metadata(file: Path, content: bytes) -> dict[str, str]:
    """The metadata of a header that safetensors has already checked. It lets duplicate names pass; we do not."""

    def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        duplicates = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if duplicates:
            raise ValueError(f"{file}: the header names {duplicates} more than once")
        return dict(pairs)

    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length], object_pairs_hook=reject_duplicates)
    return header.get("__metadata__") or {}


def _tensor(file: Path, name: str, entry: Mapping[str, Any]) -> Tensor:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{file}: tensor '{name}' has dtype {entry['dtype']}, which fastnn does not have")
    dtype, carrier = _DTYPES[entry["dtype"]]
    tensor = _C.from_numpy(np.ndarray(entry["shape"], carrier, entry["data"]))
    return tensor if tensor.dtype is dtype else tensor.view(dtype)


def _load_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of every file that an index names. A name must be a plain one: a path could lead anywhere."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors files: {error!r}") from None
    tensors: dict[str, Tensor] = {}
    for name in sorted(names, key=str):
        if not isinstance(name, str) or name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise ValueError(f"{index}: a plain file name in the same folder is expected, got {name!r}")
        shard = load(index.with_name(name))
        twice = [key for key in shard if key in tensors]
        if twice:
            raise ValueError(f"{index}: {twice[0]!r} is in more than one file")
        tensors.update(shard)
    return tensors


# ---- models -------------------------------------------------------------------------------------------


def save_model(model: Module, path: str | os.PathLike[str]) -> None:
    """Writes the model's state_dict as a plain safetensors file."""
    save(model.state_dict(), path)


def load_model(model: Module, path: str | os.PathLike[str], strict: bool = True) -> IncompatibleKeys:
    """Reads a state_dict into the model; see ``Module.load_state_dict`` for what ``strict`` reports."""
    state = load(path)
    if not _is_flat(state):
        raise ValueError(f"{path} does not hold a state_dict but a tree; load it with fastnn.load")
    return model.load_state_dict(state, strict)
