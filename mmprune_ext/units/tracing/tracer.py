"""Run a model once with channel labels beside its values.

The model is executed for real under a dispatch mode. Layers of a known kind
(:mod:`mmprune_ext.units.layers`) are atomic, all other code is followed operator by operator
(:mod:`mmprune_ext.units.tracing.operators`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmprune_ext.units.kinds.own_weights import OwnWeights
from mmprune_ext.units.labels import (
    LabelSpace,
    base_of,
    channel_dim,
    compress,
    get_core,
    note_views,
    set_core,
    spread,
    tensors_in,
    varying,
)
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.passes.functions import (
    CHANNEL_PRESERVING_FUNCTIONS,
    LEAVING,
    OF_A_WEIGHT,
    PythonCalls,
    functional_arguments,
    intercepted_functions,
)
from mmprune_ext.units.reasons import Reason

# The rules register themselves when they are imported.
from mmprune_ext.units.tracing import operators, rules_movement, rules_products, rules_values  # noqa: F401
from mmprune_ext.units.tracing.reach import Reach

Record = dict[tuple[str, str, int | None], np.ndarray]


class Tracer(TorchDispatchMode):
    """Follow channel labels through the forward passes of a model.

    Args:
        model: The model; it is run, not changed.
        boundary: Paths of submodules whose outputs' labels are collected in ``crossing``.
        whole_heads: Whether a channel of attention is a head, and not one place in each of them.

    Attributes:
        crossing: Labels that left a boundary submodule.
        space: The labels and their ties.
        records: Labels per position of a layer's dimension, by ``(path, role, dim)``, in order of
            first call.
        costs: Multiply-accumulates of each convolution and linear layer, summed over calls.
        reach: What the code of each module had in hand.
        slices: Equal slices seen of each activation, to recognise a split written as slices.
    """

    def __init__(self, model: nn.Module, boundary: Sequence[str] = (), whole_heads: bool = False) -> None:
        super().__init__()
        self.model, self.whole_heads = model, whole_heads
        self.boundary = tuple(boundary)
        self.crossing: list[np.ndarray] = []
        self.space = LabelSpace()
        self.records: Record = {}
        self.costs: dict[str, int] = {}
        self.reach = Reach()
        self.slices: dict[tuple[int, int, int], tuple[Tensor, list[np.ndarray]]] = {}
        self.counting = True
        self._suspended = 0
        self._mutating = False
        self._paths: dict[int, str] = {}
        self.layers: dict[str, nn.Module] = {}
        self._owners: dict[int, str] = {}
        self._called: set[str] = set()
        self.functional: set[str] = set()  # layers whose weight the code uses itself
        self._free: dict[int, tuple[str, Tensor]] = {}
        self._collect(model, '')
        self.own_weights = OwnWeights(self._free, self._owners)

    def _collect(self, module: nn.Module, path: str) -> None:
        """Find layers and the parameters and buffers that belong to none."""
        if id(module) in self._paths:
            return
        self._paths[id(module)] = path
        rule = rule_for(module)
        if rule is not None:
            self.layers[path] = module
            self._owners[id(module._parameters.get('weight'))] = path
            for name in rule.parts(module):
                self._collect(module.get_submodule(name), f'{path}.{name}' if path else name)
            return
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if tensor.is_floating_point():
                full = f'{path}.{name}' if path else name
                self._free.setdefault(id(tensor), (full, tensor))
        for name, child in module.named_children():
            self._collect(child, f'{path}.{name}' if path else name)

    # ------------------------------------------------------------ running

    def run(self, forward: Callable[[nn.Module], Any]) -> Any:
        """Run one forward pass and freeze the labels that leave the model."""
        self.reach.begin()
        with self._hooks(), intercepted_functions(self._around_function), \
                PythonCalls(self._around_call), torch.no_grad(), self:
            output = forward(self.model)
        for tensor in tensors_in(output):
            core = self.core(tensor)
            if core is not None:
                self.space.freeze(core, (Reason.OUTPUT, ''))
        self.slices.clear()
        return output

    def unreached(self) -> list[str]:
        """Return the layers with parameters that no pass has called, or computed with their weight."""
        reached = self._called | self.functional | self.own_weights.of_layers
        return [path for path, module in self.layers.items()
                if path not in reached and rule_for(module).widths(module) and self.has_weights(path)]

    def readable_by(self, paths: Sequence[str]) -> list[np.ndarray]:
        """Return the labels that layers which were never called may read."""
        return self.reach.readable(self.layers, paths, self.space, self.records)

    def has_weights(self, path: str) -> bool:
        """Whether a layer has parameters."""
        return any(True for _ in self.layers[path].parameters())

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._suspended += 1
            self._called.add(self._paths[id(module)])

        def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._suspended -= 1
            if self._suspended == 0:
                inputs = tensors_in((*args, *kwargs.values()))
                # The rule's own tensor operations are not part of the model.
                self.untraced(lambda: self._follow_layer(module, inputs, output))

        def enter_code(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if not self._suspended:
                values = (*args, *kwargs.values())
                lent = [self._paths[id(v)] for v in values if id(v) in self._paths]
                self.reach.enter(self._paths[id(module)], tensors_in(values), lent)

        def leave_code(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if not self._suspended:
                self.reach.leave(self._paths[id(module)], tensors_in(output))

        for module in self.model.modules():
            if id(module) not in self._paths:
                continue  # a part of a layer
            before, after = (enter, leave) if self._paths[id(module)] in self.layers else (enter_code, leave_code)
            handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        for name in self.boundary:
            handles.append(self.model.get_submodule(name).register_forward_hook(self._cross))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _around_function(self, cls: type, args: tuple, kwargs: dict[str, Any],
                         run: Callable[[], Any]) -> Any:
        output = self.untraced(run)
        if not self._suspended and self.any_core((args, kwargs)):
            self.untraced(lambda: self._follow_function(cls, args, kwargs, output))
        return output

    def untraced(self, run: Callable[[], Any]) -> Any:
        """Return what a function returns; none of its operators is followed."""
        self._suspended += 1
        try:
            return run()
        finally:
            self._suspended -= 1

    def _around_call(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any],
                     run: Callable[[], Any]) -> Any:
        if self._suspended:
            return run()
        if function in LEAVING:
            # What the code computes with such numbers has no labels.
            self.freeze_inputs(args[:1], Reason.DECISION, function.__name__)
        x, weight, bias = functional_arguments(args, kwargs) if function in OF_A_WEIGHT else (None, None, None)
        module = self.layer_of_weight(weight)
        if not isinstance(module, OF_A_WEIGHT.get(function, ())):
            return self.own_weights.around(self, function, args, kwargs, run)
        def followed() -> Any:
            output = run()
            self.functional.add(self.path_of(module))
            self._follow_layer(module, [x], output)
            self._follow_bias(module, bias)
            return output
        return self.untraced(followed)

    def _follow_bias(self, module: nn.Module, bias: Tensor | None) -> None:
        """Tie the outputs of a layer with the channels of a bias that is not its own."""
        if bias is not None and bias is not module.bias and self.core(bias) is not None:
            self.space.tie(self.own(module, len(bias)), self.core(bias).numpy())

    def _cross(self, module: nn.Module, args: tuple, output: Any) -> None:
        cores = [core for core in map(self.core, tensors_in(output)) if core is not None]
        self.crossing += [core.numpy() for core in cores]

    def _follow_function(self, cls: type, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        core = self.core(args[0]) if args and isinstance(args[0], Tensor) else None
        if cls.__name__ in CHANNEL_PRESERVING_FUNCTIONS and core is not None and \
                varying(core) <= {1}:
            self.freeze_inputs((args[1:], kwargs), Reason.FUNCTION, cls.__name__)  # where it looks
            for out in tensors_in(output):
                if out.dim() > 1 and out.shape[1] == args[0].shape[1]:
                    shape = [1] * out.dim()
                    shape[1] = core.shape[1]
                    self.write(out, core.reshape(shape))
            return
        self.freeze_inputs((args, kwargs), Reason.FUNCTION, cls.__name__)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._suspended:
            return out
        call = operators.Call(func, args, kwargs, out)
        if func.is_view and args and isinstance(args[0], Tensor):
            self._note_views(args[0], call.outputs())
        if not self.any_core((args, kwargs)):
            if func._schema.is_mutable:
                self._written(call)
            return out
        self.trace_operator(call)
        return out

    def _follow_layer(self, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        self.reach.note(inputs)
        self.trace_layer(module, inputs, output)
        self.reach.note(tensors_in(output))

    def trace_layer(self, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        """Carry labels through one call of a layer."""
        rule_for(module).trace(self, module, inputs, output)

    def trace_operator(self, call: operators.Call) -> None:
        """Carry labels through one operator that some input of has labels."""
        self._mutating = call.func._schema.is_mutable
        try:
            operators.apply_rule(self, call)
        finally:
            self._mutating = False

    def _written(self, call: operators.Call) -> None:
        for out in call.outputs():
            self._mutating = True
            self.write(out, None)
            self._mutating = False

    # ------------------------------------------------------------ labels of activations

    def core(self, tensor: Tensor) -> Tensor | None:
        """Return an activation's labels; a parameter that no layer owns gets its own at first."""
        core = get_core(tensor)
        if core is None and id(tensor) in self._free:
            core = self._label_free(tensor)
        return None if core is None else self.space.canonical(core)

    def any_core(self, values: Any) -> bool:
        """Whether any tensor of a nested structure has labels."""
        return any(isinstance(leaf, Tensor)
                   and (get_core(leaf) is not None or id(leaf) in self._free)
                   and self.core(leaf) is not None for leaf in tree_flatten(values)[0])

    def _label_free(self, tensor: Tensor) -> Tensor | None:
        """Give a parameter that no layer owns labels along its channel dimension."""
        path, dim = self._free[id(tensor)][0], channel_dim(tensor.shape)
        if dim is None:
            return None
        key = (path, 'parameter', dim)
        if key not in self.records:
            self.records[key] = self.space.new(tensor.shape[dim])
        shape = [1] * tensor.dim()
        shape[dim] = -1
        return torch.from_numpy(self.records[key].copy()).reshape(shape)

    def write(self, tensor: Tensor, core: Tensor | None) -> None:
        """Attach labels to an activation; a write in place reaches its base and other views."""
        if id(tensor) in self._free:
            return
        set_core(tensor, core)
        if self._mutating:
            spread(tensor)

    def _note_views(self, source: Tensor, views: Sequence[Tensor]) -> None:
        base = base_of(source)
        if id(base) not in self._free and not isinstance(base, nn.Parameter):
            note_views(base, [view for view in views if view is not source])

    # ------------------------------------------------------------ what rules report

    def freeze_inputs(self, values: Any, reason: Reason, detail: str) -> None:
        """Freeze the labels of every tensor in a nested structure."""
        for leaf in tree_flatten(values)[0]:
            if isinstance(leaf, Tensor):
                core = self.core(leaf)
                if core is not None:
                    self.space.freeze(core, (reason, detail))

    def layer_of_weight(self, weight: Tensor) -> nn.Module | None:
        """Return the layer that a tensor is the weight of."""
        return self.layers.get(self._owners.get(id(weight), ''))

    def path_of(self, module: nn.Module) -> str:
        """Return a layer's path."""
        return self._paths[id(module)]

    def channel_labels(self, tensor: Tensor, dim: int, reason: Reason) -> np.ndarray:
        """Return the labels along one dimension, 0 where there are none.

        A layer treats all other places (samples, positions) alike, so labels that differ between
        them are tied. Labels that vary along other dimensions only are frozen: these are not
        channels.
        """
        size, core = tensor.shape[dim], self.core(tensor)
        if core is None:
            return np.zeros(size, dtype=np.int64)
        others = varying(core) - {dim}
        if others and dim not in varying(core):
            self.space.freeze(core, (reason, 'labels vary over space'))
            return np.zeros(size, dtype=np.int64)
        if others:
            # A place without labels (a buffer not written to) holds 0 or shows in the check.
            core = core.movedim(dim, 0).reshape(size, -1)
            first = core.gather(1, (core > 0).int().argmax(1, keepdim=True))
            self.space.tie(core.numpy(), first.numpy())
            core = self.space.canonical(first)
        return core.reshape(-1).expand(size).numpy().copy()

    def _record(self, module: nn.Module, role: str, labels: np.ndarray) -> np.ndarray:
        key = (self.path_of(module), role, None)
        known = self.records.get(key)
        if known is None:
            self.records[key] = labels.copy()
            return labels
        # A layer called several times reads one channel at one position in every call.
        self.space.tie(known, labels)
        np.copyto(known, labels, where=known == 0)
        half_known = (labels == 0) & (known > 0)
        if half_known.any():
            self.space.freeze(known[half_known], (Reason.LAYER,
                              f'{key[0]} is called again with other inputs'))
        return known

    def consume(self, module: nn.Module, labels: np.ndarray) -> None:
        """Record that a layer reads these labels, one per input position."""
        self._record(module, 'consumer', labels)

    def own(self, module: nn.Module, count: int) -> np.ndarray:
        """Record a layer's own output channels, and return their labels."""
        key = (self.path_of(module), 'producer', None)
        if key not in self.records:
            self.records[key] = self.space.new(count)
        return self.records[key]

    def produce(self, module: nn.Module, count: int, output: Tensor, dim: int) -> np.ndarray:
        """Record a layer's own output channels and label its output with them."""
        labels = self.own(module, count)
        self._label_output(output, labels, dim)
        return labels

    def follow(self, module: nn.Module, labels: np.ndarray, output: Tensor, dim: int) -> None:
        """Record that a layer carries these labels through."""
        self._record(module, 'follower', labels)
        self._label_output(output, labels, dim)

    def _label_output(self, output: Tensor, labels: np.ndarray, dim: int) -> None:
        shape = [1] * output.dim()
        shape[dim] = -1
        self.write(output, compress(torch.from_numpy(labels.copy()).reshape(shape)))

    def count(self, module: nn.Module, macs: int) -> None:
        """Add to a layer's multiply-accumulates."""
        if self.counting:
            path = self.path_of(module)
            self.costs[path] = self.costs.get(path, 0) + macs
