"""What a model would cost after pruning, computed from its channel units without slimming it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from mmprune_ext.analysis.counting import is_counted_layer
from mmprune_ext.errors import PruningError
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.unit import ChannelUnit, Member
from mmprune_ext.units.unit_set import UnitSet

Keeps = Mapping[str, int] | np.ndarray
KINDS = ('macs', 'params', 'channels', 'volume')


@dataclass(frozen=True, eq=False)
class CostTerms:
    """One cost as a function of the kept numbers ``k`` of all units, in integers.

        cost(k) = constant + linear . k
                  + sum_l weights_l (in_fixed_l + in_use_l . k) (out_fixed_l + out_use_l . k) / groups_l

    Attributes:
        dense: The cost of the dense model.
        constant: What no unit changes.
        linear: Cost of each channel of a unit by itself, ``(U,)``.
        weights: Cost of one pair of an input and an output position of each layer, ``(L,)``.
        groups: Groups of each layer, ``(L,)``.
        in_fixed: Input positions of each layer that belong to no unit, ``(L,)``.
        in_use: Input positions of each layer per channel of each unit, ``(L, U)``.
        out_fixed: As ``in_fixed``, of outputs.
        out_use: As ``in_use``, of outputs.
    """

    dense: int
    constant: int
    linear: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    in_fixed: np.ndarray
    in_use: np.ndarray
    out_fixed: np.ndarray
    out_use: np.ndarray

    def widths(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the input and output positions of each layer, ``(L,)``, for kept numbers ``(U,)``."""
        return self.in_fixed + self.in_use @ kept, self.out_fixed + self.out_use @ kept

    def cost(self, kept: np.ndarray) -> int:
        """Return the cost for kept numbers ``(U,)``, integers."""
        ins, outs = self.widths(kept)
        return int(self.constant + self.linear @ kept + (self.weights * ins * outs // self.groups).sum())

    def savings(self, kept: np.ndarray) -> np.ndarray:
        """Return what one channel less of each unit, and of no other, saves, ``(U,)``, float64."""
        ins, outs = self.widths(kept)
        weights = self.weights / self.groups
        return (self.linear + (weights * outs) @ self.in_use + (weights * ins) @ self.out_use
                - weights @ (self.in_use * self.out_use))


class CostModel:
    """What a model costs as a function of each unit's kept number.

    Every cost is a sum of two kinds of terms (:class:`CostTerms`). A convolution or linear layer costs
    ``w * in * out / groups``, where ``in`` and ``out`` are the positions that stay of its dense widths;
    for a depthwise convolution ``in / groups`` stays 1. The parameters of everything else that a
    channel passes through (normalisation, bias, PReLU, position embedding) are a fixed number per
    channel, and so are the output values of a layer per output channel. The sum is exact: the integers
    of :func:`mmprune_ext.analysis.complexity` of the slimmed model. Matrix products of two activations
    (attention) are not part of it, as in ``Complexity.macs``.

    Two exceptions. Queries of ``nn.MultiheadAttention`` that are another number of places than its keys count in
    ``macs`` as if all were their mean. And a linear layer over positions (the token mixing of MLP-Mixer) runs once
    for each channel that passes by, which no member of a unit tells: it counts as in the dense model, more than it
    costs, in ``macs`` and ``volume``.

    Args:
        units: The channel units of the dense model, with members.
        dense_macs: Multiply-accumulates of each layer of the dense model by path:
            ``Complexity.per_layer``, or ``units.costs``.
        model: The dense model; it is read here and not kept.
        part: Path of the submodule whose costs count, ``'backbone'`` for example; all by default.
        dense_outputs: Output values of each layer of the dense model by path:
            ``Complexity.per_layer_outputs``. Only ``volume`` needs them.

    Attributes:
        names: Names of the units, in the order of all vectors.
        sizes: Channels of each unit, ``(U,)``.
        dense_params: Parameters of the dense model (or its part).
        dense_macs: Multiply-accumulates of the dense model (or its part).
        dense_channels: Channels of the prunable units, each unit counted once.
        dense_volume: Output values of the layers of the dense model (or its part); ``None`` without
            ``dense_outputs``.

    Raises:
        UnitFileError: If the units do not fit the model.
        PruningError: If the model has no submodule ``part``.
    """

    def __init__(self, units: UnitSet, dense_macs: Mapping[str, int], model: nn.Module,
                 part: str = '', dense_outputs: Mapping[str, int] | None = None) -> None:
        units.check(model)
        self.names = list(units)
        self.sizes = np.array([unit.num_channels for unit in units.values()], dtype=np.int64)
        self._order = {name: i for i, name in enumerate(self.names)}
        layers = _Layers(units, dense_macs, model, part, dense_outputs or {})
        prunable = np.array([unit.prunable for unit in units.values()], dtype=np.int64)
        self._terms = {
            'macs': layers.terms(self.sizes, layers.total_macs, weights=layers.positions),
            'params': layers.terms(self.sizes, layers.total_params, layers.linear_params, layers.kernels),
            'channels': layers.terms(self.sizes, int(prunable @ self.sizes), prunable)}
        if dense_outputs is not None:
            self._terms['volume'] = layers.terms(self.sizes, layers.total_outputs, layers.linear_outputs)
        self.dense_params, self.dense_macs = layers.total_params, layers.total_macs
        self.dense_channels = self._terms['channels'].dense
        self.dense_volume = None if dense_outputs is None else layers.total_outputs

    # ------------------------------------------------------------ costs

    def params(self, keeps: Keeps) -> int:
        """Return the parameters of the model after pruning.

        Args:
            keeps: Kept number by unit name, others keep all; or a vector ``(U,)`` of kept numbers
                in the order of :attr:`names`.

        Raises:
            PruningError: If a name is unknown or a number is out of range.
        """
        return self.terms('params').cost(self.vector(keeps))

    def macs(self, keeps: Keeps) -> int:
        """Return the multiply-accumulates of the model after pruning; see :meth:`params`."""
        return self.terms('macs').cost(self.vector(keeps))

    def channels(self, keeps: Keeps) -> int:
        """Return the channels that stay in the prunable units, each unit counted once."""
        return self.terms('channels').cost(self.vector(keeps))

    def volume(self, keeps: Keeps) -> int:
        """Return the output values of all layers of the model after pruning; see :meth:`params`.

        Raises:
            PruningError: As of :meth:`params`, or without ``dense_outputs``.
        """
        return self.terms('volume').cost(self.vector(keeps))

    def saving(self, name: str, keeps: Keeps, kind: str = 'macs') -> float:
        """Return what removing one more channel of a unit saves; see :meth:`savings`."""
        if name not in self._order:
            raise PruningError(f'cost model: unknown channel unit "{name}"')
        return float(self.savings(keeps, kind)[self._order[name]])

    def savings(self, keeps: Keeps, kind: str = 'macs') -> np.ndarray:
        """Return what removing one more channel of each unit, and of no other, saves.

        Args:
            keeps: The present kept numbers, as of :meth:`params`.
            kind: ``'macs'``, ``'params'``, ``'channels'`` or ``'volume'``.

        Returns:
            ``(U,)``, float64, in the order of :attr:`names`; exact for grouped convolutions too,
            where a unit's channel is one channel of every group.

        Raises:
            PruningError: As of :meth:`params`, or of :meth:`terms`.
        """
        return self.terms(kind).savings(self.vector(keeps))

    def terms(self, kind: str) -> CostTerms:
        """Return the coefficients of one cost, ``'macs'``, ``'params'``, ``'channels'`` or ``'volume'``.

        Raises:
            PruningError: For an unknown kind, or ``'volume'`` without ``dense_outputs``.
        """
        if kind not in KINDS:
            raise PruningError(f'cost model: kind should be one of {", ".join(KINDS)}, but got {kind!r}')
        if kind not in self._terms:
            raise PruningError('cost model: volume needs the output values of each layer; give '
                               'dense_outputs=complexity(model, ...).per_layer_outputs')
        return self._terms[kind]

    def vector(self, keeps: Keeps) -> np.ndarray:
        """Return kept numbers as a vector ``(U,)`` in the order of :attr:`names`, checked."""
        if isinstance(keeps, Mapping):
            vector = self.sizes.copy()
            for name, keep in keeps.items():
                if name not in self._order:
                    raise PruningError(f'cost model: unknown channel unit "{name}"')
                vector[self._order[name]] = keep
        else:
            vector = np.asarray(keeps, dtype=np.int64)
        if vector.shape != self.sizes.shape:
            raise PruningError(f'cost model: got {vector.size} kept numbers for '
                               f'{len(self.names)} channel units')
        wrong = np.flatnonzero((vector < 0) | (vector > self.sizes))
        if len(wrong):
            i = wrong[0]
            raise PruningError(f'cost model: unit "{self.names[i]}" has {self.sizes[i]} channels, '
                               f'and {vector[i]} cannot be kept')
        return vector


class _Layers:
    """The coefficients of all costs, gathered layer by layer."""

    def __init__(self, units: UnitSet, dense_macs: Mapping[str, int], model: nn.Module, part: str,
                 dense_outputs: Mapping[str, int]) -> None:
        self.part = part
        self.modules = dict(model.named_modules())
        if part not in self.modules:
            names = ', '.join(name for name, _ in model.named_children())
            raise PruningError(f'scope of the budget: {type(model).__name__} has no submodule '
                               f'"{part}"; choose from {names}')
        self.macs = {path: int(n) for path, n in dense_macs.items() if self._counts(path)}
        self.total_params = sum(p.numel() for p in self.modules[part].parameters())
        self.total_macs = sum(self.macs.values())
        self.outputs = {path: int(n) for path, n in dense_outputs.items() if self._counts(path)}
        self.total_outputs = sum(self.outputs.values())
        self.rows: dict[str, int] = {}
        self.ins: list[int] = []
        self.outs: list[int] = []
        self.groups: list[int] = []
        self.kernels: list[int] = []
        self.positions: list[int] = []
        self.entries: dict[str, list[tuple[int, int, int]]] = {'in': [], 'out': []}
        self.linear_params = np.zeros(len(units), dtype=np.int64)
        self.linear_outputs = np.zeros(len(units), dtype=np.int64)
        self.matrices = _matrices(units)
        for i, unit in enumerate(units.values()):
            for side, members in (('out', [*unit.producers, *unit.followers]),
                                  ('in', unit.consumers)):
                for member in members:
                    if self._counts(member.module):
                        self._add(i, unit, side, member)

    def _counts(self, path: str) -> bool:
        return not self.part or path == self.part or path.startswith(f'{self.part}.')

    def _add(self, i: int, unit: ChannelUnit, side: str, member: Member) -> None:
        if member.dim is not None:
            return self._add_parameter(i, unit, member)
        module = self.modules[member.module]
        if is_counted_layer(module):
            row = self._row(member.module, module)
            self.entries[side].append((row, i, member.block))
            if side == 'out':
                per_channel = self.outputs.get(member.module, 0) // self.outs[row]
                self.linear_outputs[i] += per_channel * member.block
                if getattr(module, 'bias', None) is not None:  # mmcv's DeformConv2d has no such attribute
                    self.linear_params[i] += member.block
        elif side == 'out':
            widths = rule_for(module).widths(module)
            width = widths.get('follower', widths.get('producer'))
            own = sum(p.numel() for p in module.parameters(recurse=False))
            self.linear_params[i] += own // width * member.block

    def _add_parameter(self, i: int, unit: ChannelUnit, member: Member) -> None:
        owner, _, name = member.module.rpartition('.')
        tensor = getattr(self.modules[owner], name)
        if not isinstance(tensor, nn.Parameter):
            return
        if member.module not in self.matrices:
            self.linear_params[i] += tensor.numel() // tensor.shape[member.dim] * member.block
            return
        first, second = self.matrices[member.module]
        # Those of one module (weights for queries, keys and values) share what was counted for it.
        beside = [getattr(self.modules[owner], path.rpartition('.')[2])
                  for path in self.matrices if path.rpartition('.')[0] == owner]
        if member.module not in self.rows:
            macs = self.macs.get(owner, 0) * tensor.numel() // sum(other.numel() for other in beside)
            self._new_row(member.module, tensor.shape[second], tensor.shape[first], 1, tensor.numel(), macs)
        self.entries['out' if member.dim == first else 'in'].append((self.rows[member.module], i, member.block))
        if member in unit.producers:
            made = sum(other.shape[member.dim] for other in beside)
            self.linear_outputs[i] += self.outputs.get(owner, 0) // made * member.block

    def _row(self, path: str, module: nn.Module) -> int:
        """Return the row of a layer that costs ``in * out``, new at first."""
        if path not in self.rows:
            widths = rule_for(module).widths(module)
            self._new_row(path, widths['consumer'], widths['producer'], getattr(module, 'groups', 1),
                          module.weight.numel(), self.macs.get(path, 0))
        return self.rows[path]

    def _new_row(self, path: str, ins: int, outs: int, groups: int, values: int, macs: int) -> None:
        pairs = ins * outs // groups
        self.rows[path] = len(self.ins)
        self.ins.append(ins)
        self.outs.append(outs)
        self.groups.append(groups)
        self.kernels.append(values // pairs)
        self.positions.append(macs // pairs)

    def terms(self, sizes: np.ndarray, dense: int, linear: np.ndarray | None = None,
              weights: list[int] | None = None) -> CostTerms:
        """Return the terms of one cost.

        Args:
            sizes: Channels of each unit, ``(U,)``.
            dense: The cost of the dense model.
            linear: What a channel of each unit costs by itself, ``(U,)``; nothing by default.
            weights: What a pair of an input and an output position of each layer costs; nothing by
                default. Layers of which it costs nothing are left out.
        """
        linear = np.zeros_like(sizes) if linear is None else linear
        columns = (self.ins, self.outs, self.groups, weights or [0] * len(self.ins))
        ins, outs, groups, weights = (np.array(column, dtype=np.int64) for column in columns)
        rows = np.flatnonzero(weights)
        ins, outs, groups, weights = ins[rows], outs[rows], groups[rows], weights[rows]
        in_use, out_use = (self._uses(side, len(sizes))[rows] for side in ('in', 'out'))
        products = int((weights * ins * outs // groups).sum())
        return CostTerms(dense, dense - int(linear @ sizes) - products, linear, weights, groups,
                         ins - in_use @ sizes, in_use, outs - out_use @ sizes, out_use)

    def _uses(self, side: str, count: int) -> np.ndarray:
        """Return the positions on one side of each layer per channel of each unit, ``(L, U)``."""
        matrix = np.zeros((len(self.ins), count), dtype=np.int64)
        for row, unit, block in self.entries[side]:
            matrix[row, unit] += block
        return matrix


def _matrices(units: UnitSet) -> dict[str, tuple[int, int]]:
    """Return the two dimensions of each parameter outside of layers that has channels along both, by its path."""
    dims: dict[str, set[int]] = {}
    for unit in units.values():
        for member in unit.members:
            if member.dim is not None:
                dims.setdefault(member.module, set()).add(member.dim)
    return {path: tuple(sorted(found)) for path, found in dims.items() if len(found) == 2}
