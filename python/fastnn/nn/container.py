"""Containers: modules and parameters in order or by name. The members are attributes like any other."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, overload

from fastnn._C import Tensor
from fastnn.nn.module import Module, Parameter


class _Members(Module):
    """Members of one kind under the names "0", "1", ..., with the methods of a list."""

    kind: type

    def _values(self) -> list[Any]:
        return [value for value in vars(self).values() if isinstance(value, self.kind)]

    def _set_all(self, values: Iterable[Any]) -> None:
        for name in [name for name, value in vars(self).items() if isinstance(value, self.kind)]:
            delattr(self, name)
        for position, value in enumerate(values):
            self._set(str(position), value)

    def _set(self, name: str, value: Any) -> None:
        if not isinstance(value, self.kind):
            raise TypeError(
                f"{type(self).__name__}: member '{name}' must be a {self.kind.__name__}, got {type(value).__name__}"
            )
        setattr(self, name, value)

    def _name_at(self, position: int) -> str:
        names = [name for name, value in vars(self).items() if isinstance(value, self.kind)]
        if not -len(names) <= position < len(names):
            raise IndexError(f"{type(self).__name__}: position {position} of {len(names)} members")
        return names[position]

    def __len__(self) -> int:
        return len(self._values())

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values())

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return self._slice(position)
        return vars(self)[self._name_at(position)]

    def _slice(self, positions: slice) -> Any:
        part = type(self)()
        part._set_all(self._values()[positions])
        return part

    def __setitem__(self, position: int, value: Any) -> None:
        self._set(self._name_at(position), value)

    def __delitem__(self, position: int | slice) -> None:
        values = self._values()
        del values[position]
        self._set_all(values)

    def append(self, value: Any) -> Self:
        self._set(str(len(self)), value)
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        for value in list(values):
            self.append(value)
        return self

    def insert(self, position: int, value: Any) -> Self:
        values = self._values()
        values.insert(position, value)
        self._set_all(values)
        return self


class Sequential(_Members):
    """Calls its modules one after the other. Takes modules, or one ordered dict that names them."""

    kind = Module

    @overload
    def __init__(self, *args: Module) -> None: ...
    @overload
    def __init__(self, arg: "Mapping[str, Module] | OrderedDict[str, Module]", /) -> None: ...
    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], Mapping):
            for name, module in args[0].items():
                self._set(name, module)
        else:
            self._set_all(args)

    def _slice(self, positions: slice) -> "Sequential":
        return Sequential(dict(list(self.named_children())[positions]))

    def forward(self, input: Any) -> Any:
        for module in self._values():
            input = module(input)
        return input


class ModuleList(_Members):
    """A list whose modules are part of the model; it has no forward of its own."""

    kind = Module

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self._set_all(modules)


class ParameterList(_Members):
    """A list whose parameters are part of the model. A plain Tensor becomes a Parameter."""

    kind = Parameter

    def __init__(self, values: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._set_all(values)

    def _set(self, name: str, value: Any) -> None:
        is_plain = isinstance(value, Tensor) and not isinstance(value, Parameter)
        super()._set(name, Parameter(value) if is_plain else value)

    def extra_repr(self) -> str:
        return "\n  ".join(f"({i}): Parameter {tuple(p.shape)} {p.dtype}" for i, p in enumerate(self))


class ModuleDict(Module):
    """A dict whose modules are part of the model; it has no forward of its own."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__()
        self.update(modules)

    def __getitem__(self, name: str) -> Module:
        found = vars(self).get(name)
        if not isinstance(found, Module):
            raise KeyError(name)
        return found

    def __setitem__(self, name: str, module: Module) -> None:
        if hasattr(type(self), name):
            raise KeyError(f"ModuleDict: {name!r} is an attribute of Module and cannot be a key")
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        self[name]  # KeyError when it is not a member
        delattr(self, name)

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> list[str]:
        """The names, in the order of insertion."""
        return [name for name, _ in self.named_children()]

    def values(self) -> list[Module]:
        """The modules, in the order of their names."""
        return [module for _, module in self.named_children()]

    def items(self) -> list[tuple[str, Module]]:
        """(name, module) pairs."""
        return list(self.named_children())

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Sets every module of a dict, or of (name, module) pairs."""
        for name, module in modules.items() if isinstance(modules, Mapping) else modules:
            self[name] = module

    def pop(self, name: str) -> Module:
        """Takes the module out and returns it; KeyError when there is none."""
        module = self[name]
        del self[name]
        return module
