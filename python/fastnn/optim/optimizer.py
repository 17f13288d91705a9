"""Optimizer: parameter groups, per-parameter state, and both as a state_dict in PyTorch's format."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict, Unpack

from fastnn import _C
from fastnn._C import Tensor
from fastnn.autograd import enable_grad, no_grad
from fastnn.nn.module import clear_grad
from fastnn.nn.utils import gradients_of

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


# The count of the step that is taken, of all parameters; or one on the GPU for each, which the step itself raises.
Count = int | list[Tensor]


class Implementation(TypedDict, total=False):
    """PyTorch's choice among its implementations. ``foreach`` and ``fused`` change nothing: every step is fused."""

    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


def _check_state_dict(name: str, state_dict: Any) -> None:
    """TypeError unless it is {"state": {number: {...}}, "param_groups": [{"params": [...], ...}]}."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        got = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise TypeError(f"{name}: state_dict must be a dict with 'state' and 'param_groups', got {got}")
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping) or not all(isinstance(entry, Mapping) for entry in state.values()):
        raise TypeError(f"{name}: state_dict['state'] must be a dict of dicts, one a parameter")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) and "params" in group for group in groups):
        raise TypeError(f"{name}: state_dict['param_groups'] must be a list of dicts that name their 'params'")


class Optimizer:
    """The base: a subclass gives ``defaults`` and ``_step_group``.

    ``params`` are tensors, (name, tensor) pairs, or dicts with ``params`` and options that override the
    defaults. A step is one fused call for each group. Of the keywords for PyTorch's implementations ``foreach`` and
    ``fused`` change nothing, and ``differentiable=True`` is refused: a step is outside autograd.

    With ``capturable=True`` steps of parameters on a GPU are counted there, so that a CUDA graph may hold them
    (``fastnn.cuda.graph``): every replay is the next step. The states must be there before the capture: take a step
    first. Learning rates and other options are numbers, and stay what they were at the capture.
    """

    _capture_advice = "make the optimizer with capturable=True"  # what else to do where the host counts

    def __init__(self, params: Params, defaults: dict[str, Any], **implementation: Unpack[Implementation]) -> None:
        kind = type(self).__name__
        if unknown := set(implementation) - set(Implementation.__annotations__):
            raise TypeError(f"{kind}: unknown arguments {sorted(unknown)}")
        if implementation.get("differentiable"):
            raise ValueError(f"{kind}: differentiable=True is not supported, a step is outside autograd")
        if isinstance(params, Tensor):
            raise TypeError("an optimizer takes an iterable of tensors or dicts, got a single Tensor")
        self.defaults = {**defaults, "capturable": implementation.get("capturable", False)}
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = []
        groups = list(params)
        if not groups:
            raise ValueError("an optimizer got an empty list of parameters")
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)  # type: ignore[arg-type]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own, for example a layer unfrozen later."""
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group must be a dict, got {type(param_group).__name__}")
        given = param_group["params"]
        params = [given] if isinstance(given, Tensor) else list(given)
        names = [p[0] for p in params if isinstance(p, tuple)]
        params = [p[1] if isinstance(p, tuple) else p for p in params]
        if 0 < len(names) < len(params):
            raise ValueError("an optimizer got parameters of which some have names and some do not")
        seen = {id(p) for group in self.param_groups for p in group["params"]}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"an optimizer optimises Tensors, got {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError(f"cannot optimise a non-leaf tensor of shape {tuple(p.shape)}: it is itself computed")
            if id(p) in seen:
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is given to the optimizer twice")
            seen.add(id(p))
        group = {**self.defaults, **param_group, "params": params}
        if names:
            group["param_names"] = names
        self._check_options(group)
        self.param_groups.append(group)

    def _check_options(self, group: dict[str, Any]) -> None:
        """ValueError for an option out of range."""
        self._check_not_negative(group, "lr", "weight_decay")

    def _check_not_negative(self, group: dict[str, Any], *names: str) -> None:
        for name in names:
            if not group[name] >= 0:
                raise ValueError(f"{type(self).__name__}: {name} must not be negative, got {group[name]}")

    def _check_beta(self, name: str, value: float) -> None:
        if not 0 <= value < 1:
            raise ValueError(f"{type(self).__name__}: {name} must be in [0, 1), got {value}")

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Updates the parameters of one group that have a gradient."""
        raise NotImplementedError

    def _by_step(self, group: dict[str, Any], params: list[Tensor]) -> list[tuple[Count, list[Tensor]]]:
        """Counts a step for each parameter; the parameters by that count, or all of them where the GPU counts.

        A layer unfrozen later counts from its own start.
        """
        if self._counts_on_gpu(group, params[0]):
            return [([self._count_on_gpu(p) for p in params], params)]
        if params[0].is_cuda and _C.cuda_is_capturing():
            raise RuntimeError(
                f"{type(self).__name__}: its steps are counted on the host, and a CUDA graph would repeat the captured "
                f"one; {self._capture_advice}"
            )
        found: dict[int, list[Tensor]] = {}
        for p in params:
            state = self.state.setdefault(p, {})
            state["step"] = step = int(state.get("step", 0)) + 1
            found.setdefault(step, []).append(p)
        return list(found.items())

    def _counts_on_gpu(self, group: dict[str, Any], p: Tensor) -> bool:
        return group["capturable"] and p.is_cuda

    def _count_on_gpu(self, p: Tensor) -> Tensor:
        """How many steps were taken: a number of float32, as PyTorch keeps it."""
        state = self.state.setdefault(p, {})
        if not isinstance(state.get("step"), Tensor):
            self._check_may_begin()
            state["step"] = _C.full((), float(state.get("step", 0)), dtype=_C.float32, device=p.device)
        count: Tensor = state["step"]
        return count

    def _check_may_begin(self) -> None:
        if _C.cuda_is_capturing():
            raise RuntimeError(
                f"{type(self).__name__}: the first step makes the states, and every replay of a CUDA graph would make "
                "them anew; take a step before the capture"
            )

    def _state_of(self, params: list[Tensor], name: str, start: float = 0.0) -> list[Tensor]:
        """The states of this name; one that is not there yet is filled with ``start``."""
        for p in params:
            state = self.state.setdefault(p, {})
            if name not in state:
                self._check_may_begin()
                state[name] = _C.full_like(p.detach(), start)
        return [self.state[p][name] for p in params]

    def _update(
        self,
        rule: str,
        group: dict[str, Any],
        params: list[Tensor],
        states: Iterable[str],
        coefficients: list[float],
        decoupled: bool = False,
        step: Count = 1,
    ) -> None:
        """One fused step of these parameters, the ``step``-th.

        With ``decoupled`` the weight decay acts on the parameter itself, else it adds to the gradient.
        """
        rows = [self._state_of(params, name) for name in states]
        decay = group["weight_decay"]
        _C.optimizer_step(
            rule,
            params,
            gradients_of(params),
            rows,
            coefficients,
            0.0 if decoupled else decay,
            1 - group["lr"] * decay if decoupled else 1.0,
            group["maximize"],
            step,
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the gradients now in ``.grad``. ``closure`` computes the loss anew and is returned."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with no_grad():
            for group in self.param_groups:
                params = [p for p in group["params"] if p.grad is not None]
                if params:
                    self._step_group(group, params)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients; without ``set_to_none`` keeps their memory and fills it with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                clear_grad(p, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State and options, parameters replaced by their numbers. The tensors are the optimizer's own."""
        number: dict[int, int] = {}
        for group in self.param_groups:
            for p in group["params"]:
                number[id(p)] = len(number)
        groups = [{**group, "params": [number[id(p)] for p in group["params"]]} for group in self.param_groups]
        return {"state": {number[id(p)]: dict(s) for p, s in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a copy of a saved state. ValueError when the groups or shapes are not those of this optimizer;
        TypeError for what is not such a state at all."""
        _check_state_dict(type(self).__name__, state_dict)
        saved_groups, own_groups = state_dict["param_groups"], self.param_groups
        saved_sizes = [len(group["params"]) for group in saved_groups]
        own_sizes = [len(group["params"]) for group in own_groups]
        if saved_sizes != own_sizes:
            raise ValueError(
                f"{type(self).__name__}: the saved groups have {saved_sizes} parameters, this optimizer's {own_sizes}"
            )
        own = [p for group in own_groups for p in group["params"]]
        numbers = [n for group in saved_groups for n in group["params"]]
        saved = state_dict["state"]
        state = {p: self._restored(p, saved[n]) for p, n in zip(own, numbers, strict=True) if n in saved}
        groups = [
            {**self.defaults, **there, "params": here["params"]}
            for here, there in zip(own_groups, saved_groups, strict=True)
        ]
        for group in groups:
            self._check_options(group)
        self.state, self.param_groups = state, groups
        for group in groups:
            for p in group["params"]:
                if "step" in state.get(p, {}) and self._counts_on_gpu(group, p):
                    self._count_on_gpu(p)

    def _restored(self, p: Tensor, saved: Mapping[str, Any]) -> dict[str, Any]:
        """The state of one parameter: tensors copied to its dtype and device, the step count as an int."""
        restored: dict[str, Any] = {}
        for name, value in saved.items():
            if name == "step":
                restored[name] = int(value)
            elif name == "mu_product":
                restored[name] = float(value)
            elif isinstance(value, Tensor):
                if tuple(value.shape) != tuple(p.shape):
                    raise ValueError(
                        f"{type(self).__name__}: saved {name} has shape {tuple(value.shape)}, "
                        f"its parameter has {tuple(p.shape)}"
                    )
                restored[name] = value.detach().to(p.device).to(p.dtype).clone()
            else:
                restored[name] = value
        return restored

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for position, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {position}")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        return "\n".join(lines) + "\n)"
