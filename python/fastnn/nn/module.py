"""Module: a tree of parameters, buffers and submodules with a ``forward``.

There is no metaclass and no ``__getattr__``: parameters, buffers and submodules are ordinary
attributes, found by walking ``vars(self)``. A Parameter is a parameter, a Module is a child, and a
tensor whose name was given to ``register_buffer`` is a buffer. A call without hooks costs one
attribute test more than calling ``forward`` itself.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from fastnn import _C
from fastnn._C import Tensor
from fastnn.autograd import no_grad

_REPORT_LINES = 20  # of each kind, in the report of load_state_dict


class Parameter(Tensor):
    """A tensor that a Module lists among its parameters. It shares memory with ``data``."""

    def __new__(cls, data: Tensor | None = None, requires_grad: bool = True) -> Self:
        parameter: Self = Tensor._make_subclass(cls, _C.empty((0,)) if data is None else data, requires_grad)
        return parameter

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parameter":
        return Parameter(self.detach().clone(), self.requires_grad)

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(strict=False)`` could not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class RemovableHandle:
    """Takes a hook away again."""

    def __init__(self, hooks: dict[int, Any], key: int) -> None:
        self._hooks = hooks
        self._key = key

    def remove(self) -> None:
        """Does nothing the second time."""
        self._hooks.pop(self._key, None)


class _Hooks:
    def __init__(self) -> None:
        self.before: dict[int, Callable[..., Any]] = {}
        self.after: dict[int, Callable[..., Any]] = {}
        self.count = 0

    def add(self, hooks: dict[int, Callable[..., Any]], hook: Callable[..., Any]) -> RemovableHandle:
        self.count += 1
        hooks[self.count] = hook
        return RemovableHandle(hooks, self.count)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _indent(text: str) -> str:
    return text.replace("\n", "\n  ")


class Module:
    """The base of every layer and model::

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(30, 16)
            self.output = nn.Linear(16, 1)

        def forward(self, x):
            return self.output(F.relu(self.hidden(x)))
    """

    training: bool = True
    _persistent: Mapping[str, bool] = MappingProxyType({})  # buffer name -> is it part of the state_dict?
    _hooks: _Hooks | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._hooks is None:
            return self.forward(*args, **kwargs)
        return self._call_with_hooks(self._hooks, args, kwargs)

    def _call_with_hooks(self, hooks: _Hooks, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for hook in tuple(hooks.before.values()):
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        output = self.forward(*args, **kwargs)
        for hook in tuple(hooks.after.values()):
            changed = hook(self, args, output)
            if changed is not None:
                output = changed
        return output

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """``hook(module, args)`` runs before forward; what it returns, if not None, replaces ``args``."""
        if self._hooks is None:
            self._hooks = _Hooks()
        return self._hooks.add(self._hooks.before, hook)

    def register_forward_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """``hook(module, args, output)`` runs after forward; what it returns, if not None, replaces the output."""
        if self._hooks is None:
            self._hooks = _Hooks()
        return self._hooks.add(self._hooks.after, hook)

    # ---- what a module holds ----------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if (
            isinstance(value, Tensor)
            and not isinstance(value, Parameter)
            and isinstance(vars(self).get(name), Parameter)
        ):
            raise TypeError(
                f"cannot put a plain Tensor in place of parameter '{name}': it would silently leave parameters(); "
                f"assign nn.Parameter(...) or None, or change the values with {name}.data or under no_grad()"
            )
        object.__setattr__(self, name, value)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """The same as assigning the attribute; TypeError for anything but a Parameter or None."""
        if not (param is None or isinstance(param, Parameter)):
            raise TypeError(f"register_parameter: '{name}' must be an nn.Parameter or None, got {type(param).__name__}")
        setattr(self, name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """A tensor that moves with the module but is not trained; ``persistent`` ones are saved with it, too."""
        if not (tensor is None or isinstance(tensor, Tensor)):
            raise TypeError(f"register_buffer: '{name}' must be a Tensor or None, got {type(tensor).__name__}")
        if "." in name or not name:
            raise ValueError(f"register_buffer: a name must not be empty or contain a dot, got {name!r}")
        self._persistent = {**self._persistent, name: persistent}
        setattr(self, name, tensor)

    def add_module(self, name: str, module: "Module | None") -> None:
        """The same as assigning the attribute, for names that are not identifiers; a dot in one is a ValueError."""
        if not (module is None or isinstance(module, Module)):
            raise TypeError(f"add_module: '{name}' must be a Module or None, got {type(module).__name__}")
        if "." in name or not name:
            raise ValueError(f"add_module: a name must not be empty or contain a dot, got {name!r}")
        setattr(self, name, module)

    def _own_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Parameter))

    def _own_buffers(self) -> Iterator[tuple[str, Tensor]]:
        found = ((name, vars(self).get(name)) for name in self._persistent)
        return ((name, value) for name, value in found if isinstance(value, Tensor))

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules that are attributes of this one, in the order of their assignment."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def children(self) -> Iterator["Module"]:
        """``named_children`` without the names."""
        return (module for _, module in self.named_children())

    def named_modules(
        self, memo: set["Module"] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, "Module"]]:
        """This module and all below it, depth first; a shared module once unless told otherwise."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(memo, _join(prefix, name), remove_duplicate)

    def modules(self) -> Iterator["Module"]:
        """``named_modules`` without the names: this one first."""
        return (module for _, module in self.named_modules())

    def _named(
        self, own: Callable[["Module"], Iterator[tuple[str, Any]]], prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(None, prefix, remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, value in own(module):
                if remove_duplicate and id(value) in seen:
                    continue
                seen.add(id(value))
                yield _join(path, name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Parameters by dotted name, with ``recurse`` of all modules below, too; a shared one once, under its first.

        ``remove_duplicate=False`` gives it under each of its names.
        """
        return self._named(Module._own_parameters, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """``named_parameters`` without the names: what an optimizer takes."""
        return (value for _, value in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Buffers by dotted name, as ``named_parameters`` gives parameters."""
        return self._named(Module._own_buffers, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """``named_buffers`` without the names."""
        return (value for _, value in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> "Module":
        """The module at a dotted path; AttributeError names the part that is missing."""
        module = self
        for name in target.split(".") if target else []:
            child = vars(module).get(name)
            if not isinstance(child, Module):
                raise AttributeError(f"{type(module).__name__} has no submodule '{name}' (looking for '{target}')")
            module = child
        return module

    # ---- saving and loading -----------------------------------------------------------------------

    def _state(self) -> Iterator[tuple[str, "Module", str, Tensor]]:
        """(key, module, attribute, tensor) of everything in the state_dict; shared ones under each of their names."""
        for path, module in self.named_modules(remove_duplicate=False):
            for name, parameter in module._own_parameters():
                yield _join(path, name), module, name, parameter
            for name, buffer in module._own_buffers():
                if module._persistent[name]:
                    yield _join(path, name), module, name, buffer

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted name. The tensors share memory with the module."""
        return {prefix + key: value if keep_vars else value.detach() for key, _, _, value in self._state()}

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copies the values in, or with ``assign`` takes the tensors themselves.

        Nothing is changed unless everything fits: one RuntimeError lists every missing, unexpected
        and wrongly shaped entry (``strict=False`` forgives the first two). NaN or infinite values only warn.
        TypeError for what is no dict.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict: state_dict must be a dict of tensors, got {type(state_dict).__name__}")
        own = {key: (module, name, value) for key, module, name, value in self._state()}
        missing = [key for key in own if key not in state_dict]
        unexpected = [key for key in state_dict if key not in own]
        matched = [key for key in own if key in state_dict]
        report = _report(
            type(self).__name__, {key: own[key][2] for key in matched}, state_dict, missing, unexpected, strict
        )
        if report:
            raise RuntimeError(report)
        _warn_if_not_finite({key: state_dict[key] for key in matched})
        with no_grad():
            for key in matched:
                module, name, value = own[key]
                if not assign:
                    value.copy_(state_dict[key])
                elif isinstance(value, Parameter):
                    setattr(module, name, Parameter(state_dict[key].detach(), value.requires_grad))
                else:
                    setattr(module, name, state_dict[key])
        return IncompatibleKeys(missing, unexpected)

    # ---- changing all of it ------------------------------------------------------------------------

    def apply(self, fn: Callable[["Module"], Any]) -> Self:
        """Calls ``fn`` on every submodule, children first, then on this one."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Switches dropout and the like on (or, with False, off) in this module and all below it."""
        if not isinstance(mode, bool):
            raise ValueError(f"train: mode must be True or False, got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """``train(False)``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Sets ``requires_grad`` of all parameters; with False the module is frozen."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all parameters; without ``set_to_none`` fills them with zeros."""
        for parameter in self.parameters():
            clear_grad(parameter, set_to_none)

    def _convert(self, convert: Callable[[Tensor], Tensor]) -> Self:
        """Replaces the data of every parameter, gradient and buffer; the Parameter objects stay the same."""
        with no_grad():
            for parameter in self.parameters():
                gradient = parameter.grad
                parameter.grad = None
                parameter.data = convert(parameter.detach())
                parameter.grad = None if gradient is None else convert(gradient)
            for module in self.modules():
                for name, buffer in list(module._own_buffers()):
                    setattr(module, name, convert(buffer))
        return self

    def to(self, *args: Any, memory_format: _C.memory_format | None = None, **kwargs: Any) -> Self:
        """Moves to a device, a floating dtype, or both, as ``Tensor.to`` does; integer buffers keep their dtype.

        ``memory_format`` is for what has 4 dimensions, the weights of 2-D convolutions: of a model in
        ``channels_last`` the images between its layers have their channels last, whatever they were at its input.
        """

        def convert(x: Tensor) -> Tensor:
            moved = x.to(*args, **kwargs)
            if not (x.is_floating_point() or moved.dtype is x.dtype):
                moved = x.to(moved.device)
            return moved.to(memory_format=memory_format) if moved.dim() == 4 else moved

        return self._convert(convert)

    def type(self, dtype: Any) -> Self:
        """``to(dtype)``."""
        return self.to(dtype)

    def float(self) -> Self:
        """``to(float32)``."""
        return self.to(_C.float32)

    def double(self) -> Self:
        """``to(float64)``."""
        return self.to(_C.float64)

    def half(self) -> Self:
        """``to(float16)``."""
        return self.to(_C.float16)

    def bfloat16(self) -> Self:
        """``to(bfloat16)``."""
        return self.to(_C.bfloat16)

    def cpu(self) -> Self:
        """``to("cpu")``."""
        return self.to("cpu")

    def cuda(self, device: int | str | _C.device | None = None) -> Self:
        """Moves to a GPU: the current one unless another is named."""
        return self.to("cuda" if device is None else device)

    # ---- looking at it -----------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The arguments shown between the parentheses."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        children = [f"({name}): {_indent(repr(child))}" for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = ([extra] if extra else []) + children
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


def clear_grad(parameter: Tensor, set_to_none: bool) -> None:
    """Drops a gradient, or keeps its memory and fills it with zeros."""
    if set_to_none:
        parameter.grad = None
    elif parameter.grad is not None:
        parameter.grad = parameter.grad.detach().zero_()


def _listing(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    more = [f"... and {len(lines) - _REPORT_LINES} more"] if len(lines) > _REPORT_LINES else []
    return f"\n  {title} ({len(lines)}):" + "".join(f"\n    {line}" for line in lines[:_REPORT_LINES] + more)


def _report(
    model: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Any],
    missing: list[str],
    unexpected: list[str],
    strict: bool,
) -> str:
    """Everything that does not fit, or an empty string."""
    wrong = []
    for key, value in own.items():
        other = given[key]
        if not isinstance(other, Tensor):
            wrong.append(f"{key}: a Tensor is expected, got {type(other).__name__}")
        elif tuple(other.shape) != tuple(value.shape):
            wrong.append(f"{key}: {tuple(value.shape)} is expected, got {tuple(other.shape)}")
    text = _listing("missing", missing) + _listing("unexpected", unexpected) if strict else ""
    text += _listing("wrong shape", wrong)
    return f"load_state_dict: the state does not fit {model}:{text}" if text else ""


def _warn_if_not_finite(state: Mapping[str, Tensor]) -> None:
    def finite(x: Tensor) -> bool:
        return not x.is_floating_point() or bool(_C.isfinite(x).all())

    bad = [key for key, value in state.items() if not finite(value)]
    if bad:
        warnings.warn("load_state_dict: NaN or infinite values were loaded" + _listing("tensors", bad), stacklevel=3)
