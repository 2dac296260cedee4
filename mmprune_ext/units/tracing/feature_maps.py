"""Find, while a model runs, the feature map of each layer that makes channels.

The feature map of a layer is what its output has become after the first activation function, on
the way through normalisation, residual sums and concatenation. Where another layer reads the
output before any activation (linear bottlenecks), or nothing does, it is the tensor that was read,
or the last one. No network is known by name: the labels of :mod:`mmprune_ext.units.tracing.tracer`, which
run beside the values, tell which channel of which layer stands where.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mmprune_ext.units.labels import LabelSpace, tensors_in, varying
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.tracing import rules_movement
from mmprune_ext.units.tracing.operators import RULES, Call, rule_of
from mmprune_ext.units.tracing.tracer import Tracer

# Sigmoids are no activations here: they are gates (squeeze-excite), but for ``x * sigmoid(x)``.
ACTIVATIONS = {'relu', 'hardtanh', 'relu6', 'leaky_relu', 'prelu', '_prelu_kernel', 'rrelu_with_noise', 'elu',
               'celu', 'selu', 'silu', 'gelu', 'hardswish', 'mish', 'tanh', 'threshold', 'clamp_min'}
_LAYERS, _GATED = '_mmprune_layers', '_mmprune_gated'

OnMap = Callable[[Tensor, Mapping[str, np.ndarray]], None]


class FeatureMaps(Tracer):
    """Run a model and hand out each feature map as soon as it has been computed.

    Args:
        model: The model; it is run, not changed.
        layers: Paths of the convolution and linear layers whose feature maps are wanted.
        on_map: Called as ``on_map(values, channels)`` with the values ``(N, C, S)`` of ``S``
            positions in ``N`` samples, and by layer path the output channels ``(C,)`` of the layer that
            stand there: of one layer, or of several whose outputs have been added. A layer that is
            called several times has a feature map each time. ``values`` may be a view of an
            activation: it must be neither changed nor kept.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], on_map: OnMap) -> None:
        super().__init__(model)
        self.space = _Sums()
        self._on_map = on_map
        # By layer, which output channels of its present call have not been handed out.
        self._waiting: dict[str, np.ndarray] = {path: np.zeros(0, dtype=bool) for path in layers}
        # Maps whose way has ended, in a pooling or a gate, and which may be all there is.
        self._last: dict[str, Tensor] = {}

    def run(self, forward: Callable[[nn.Module], Any]) -> Any:
        """Run one forward pass; afterwards hand out what no activation and no layer has taken."""
        output = super().run(forward)
        for tensor in [*tensors_in(output), *self._last.values()]:
            self._hand_out(tensor)
        self._last.clear()
        return output

    # ------------------------------------------------------------ which layers' maps a tensor is

    def _layers_in(self, tensor: Tensor) -> frozenset[str]:
        """Return the layers whose maps, not handed out yet, a tensor holds."""
        found = getattr(tensor, _LAYERS, frozenset())
        return frozenset(path for path in found if self._waiting[path].any())

    def trace_layer(self, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        """Carry labels; a layer that reads a map before any activation ends its way."""
        entering = self._layers_in(inputs[0]) if inputs else frozenset()
        reads = _reads(module)
        if reads:
            for tensor in inputs:
                self._hand_out(tensor)
        path = self.path_of(module)
        if path in self._last:  # called again, and nothing has taken the map of the call before
            self._hand_out(self._last[path])
        super().trace_layer(module, inputs, output)
        if not isinstance(output, Tensor):
            return
        made = self.records.get((path, 'producer', None))
        if path in self._waiting and made is not None:
            self._waiting[path] = np.ones(len(made), dtype=bool)
            setattr(output, _LAYERS, frozenset([path]))
        elif not reads:
            setattr(output, _LAYERS, entering)
        if isinstance(module, nn.PReLU):
            self._hand_out(output)

    def trace_operator(self, call: Call) -> None:
        """Carry labels; an activation function ends the way of the maps it takes."""
        before = [(leaf, self._layers_in(leaf)) for leaf in tree_flatten((call.args, call.kwargs))[0]
                  if isinstance(leaf, Tensor)]
        self.space.meeting = rule_of(call) is RULES['pointwise']
        super().trace_operator(call)
        self.space.meeting = False
        outputs = call.outputs()
        through: frozenset[str] = frozenset()
        for out in outputs:
            through = frozenset().union(*(layers for tensor, layers in before
                                          if _same_map(call, tensor, out)))
            setattr(out, _LAYERS, through)
        for tensor, layers in before:
            self._last.update(dict.fromkeys(layers - through, tensor))
        if self._is_activation(call):
            self._hand_out(outputs[0])

    def _is_activation(self, call: Call) -> bool:
        name = call.name.rstrip('_') if call.name != '_prelu_kernel' else call.name
        if name == 'sigmoid':
            setattr(call.outputs()[0], _GATED, weakref.ref(call.args[0]))
        if name == 'mul':
            first, second = call.args[:2]
            return _gated(first) is second or _gated(second) is first
        if name == 'clamp':
            return call.argument('min') == 0
        return name in ACTIVATIONS

    # ------------------------------------------------------------ handing out

    def _hand_out(self, tensor: Tensor) -> None:
        """Report the maps that a tensor holds."""
        layers = self._layers_in(tensor)
        core = self.core(tensor) if layers and tensor.numel() else None
        if core is None or len(varying(core)) > 1:
            return
        dim = next(iter(varying(core)), min(1, tensor.dim() - 1))
        labels = core.numpy().reshape(-1)
        same_rows: dict[bytes, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
        for path in sorted(layers):
            rows, channels = self._place(labels, path)
            if len(rows):
                self._last.pop(path, None)
                same_rows.setdefault(rows.tobytes(), (rows, {}))[1][path] = channels
        for rows, channels in same_rows.values():
            count = len(next(iter(channels.values())))
            self._on_map(_values(tensor.detach(), dim, rows, count), channels)

    def _place(self, labels: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Return where a layer's waiting channels stand among a tensor's labels, and which they are.

        After a flatten each channel has several rows, one after the other. Of channels that were
        added to each other, and of rows that repeat one, the first counts.
        """
        own = self.space.roots(self.records[path, 'producer', None])
        waiting = np.flatnonzero(self._waiting[path] & np.isin(own, labels))
        self._waiting[path][waiting] = False
        classes, first = np.unique(own[waiting], return_index=True)
        rows = np.flatnonzero(np.isin(labels, classes))
        found = labels[rows]
        if len(classes) and len(rows) % len(classes) == 0:
            runs = found.reshape(len(classes), -1)
            if (runs == runs[:, :1]).all() and len(np.unique(runs[:, 0])) == len(classes):
                return rows, waiting[first][np.searchsorted(classes, runs[:, 0])]
        rows = rows[np.sort(np.unique(found, return_index=True)[1])]
        return rows, waiting[first][np.searchsorted(classes, labels[rows])]


class _Sums(LabelSpace):
    """Ties channels where their values meet, and not because they have to be pruned together."""

    meeting = False

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        if self.meeting:
            super().tie(first, second)


def _reads(module: nn.Module) -> bool:
    """Whether a layer computes something new of what enters, as convolution and linear layers do."""
    widths = rule_for(module).widths(module)
    return (not widths or 'consumer' in widths) and any(True for _ in module.parameters())


def _same_map(call: Call, tensor: Tensor, out: Tensor) -> bool:
    """Whether an operator's output is still the feature map that a tensor was."""
    kind = rule_of(call)
    if kind is RULES['pointwise']:
        # What is broadcast is a gate or a bias, not a map, and neither is a mask.
        return tensor.shape == out.shape and out.is_floating_point()
    # Pooling to one place summarises a map; it is read beside the map itself (squeeze-excite).
    moved = kind.__module__ == rules_movement.__name__
    return moved or ('pool' in call.name and out.shape[-1] > 1)


def _gated(value: Any) -> Tensor | None:
    reference = getattr(value, _GATED, None)
    return None if reference is None else reference()


def _values(tensor: Tensor, dim: int, rows: np.ndarray, count: int) -> Tensor:
    """Return the rows of a tensor along its channel dimension as ``(N, count, positions)``."""
    planes = tensor.unsqueeze(0) if dim == 0 else tensor.movedim(dim, 1)
    planes = planes.unsqueeze(-1).flatten(2)
    if len(rows) < planes.shape[1]:
        start = int(rows[0])
        if len(rows) == rows[-1] - start + 1:
            planes = planes.narrow(1, start, len(rows))
        else:
            planes = planes[:, rows]
    return planes.reshape(planes.shape[0], count, -1)
