"""What a model would cost after pruning, computed from its channel units without slimming it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from mmprune_ext.analysis.counting import is_counted_layer
from mmprune_ext.errors import PruningError
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.unit import ChannelUnit, Member
from mmprune_ext.units.unit_set import UnitSet

Keeps = Mapping[str, int] | np.ndarray


class CostModel:
    """Parameters and multiply-accumulates as a function of each unit's kept number.

    Every cost is a sum of two kinds of terms. A convolution or linear layer costs ``w * in * out /
    groups``, where ``in`` and ``out`` are its dense widths less the positions of removed channels;
    for a depthwise convolution ``in / groups`` stays 1. The parameters of everything else that a
    channel passes through (normalisation, bias, PReLU, position embedding) are a fixed number per
    channel. With ``x`` the removed channels of all units,

        cost(x) = const - linear . x + sum_l w_l (in_l - A_l . x) (out_l - B_l . x) / groups_l

    which is exact: the integers of :func:`mmprune_ext.analysis.complexity` of the slimmed model.
    Matrix products of two activations (attention) are not part of it, as in ``Complexity.macs``.

    Args:
        units: The channel units of the dense model, with members.
        dense_macs: Multiply-accumulates of each layer of the dense model by path:
            ``Complexity.per_layer``, or ``units.costs``.
        model: The dense model; it is read here and not kept.
        part: Path of the submodule whose costs count, ``'backbone'`` for example; all by default.

    Attributes:
        names: Names of the units, in the order of all vectors.
        sizes: Channels of each unit, ``(U,)``.
        dense_params: Parameters of the dense model (or its part).
        dense_macs: Multiply-accumulates of the dense model (or its part).
        dense_channels: Channels of the prunable units, each unit counted once.

    Raises:
        UnitFileError: If the units do not fit the model.
        PruningError: If the model has no submodule ``part``.
    """

    def __init__(self, units: UnitSet, dense_macs: Mapping[str, int], model: nn.Module,
                 part: str = '') -> None:
        units.check(model)
        self.names = list(units)
        self.sizes = np.array([unit.num_channels for unit in units.values()], dtype=np.int64)
        self._order = {name: i for i, name in enumerate(self.names)}
        self._prunable = np.array([unit.prunable for unit in units.values()], dtype=bool)
        terms = _Terms(units, dense_macs, model, part)
        self._in_size, self._out_size, self._groups = (
            np.array(column, dtype=np.int64) for column in (terms.ins, terms.outs, terms.groups))
        self._in_use, self._out_use = terms.matrices(len(self.names))
        self._both_use = self._in_use * self._out_use
        self._weights = {'params': np.array(terms.kernels, dtype=np.int64),
                         'macs': np.array(terms.positions, dtype=np.int64)}
        self._linear = {'params': terms.linear_params, 'macs': np.zeros_like(self.sizes)}
        products = {kind: self._products(kind, self._in_size, self._out_size)
                    for kind in ('params', 'macs')}
        self.dense_params, self.dense_macs = terms.total_params, terms.total_macs
        self._constant = {'params': terms.total_params - products['params'],
                          'macs': terms.total_macs - products['macs']}
        self.dense_channels = int(self.sizes[self._prunable].sum())

    # ------------------------------------------------------------ costs

    def params(self, keeps: Keeps) -> int:
        """Return the parameters of the model after pruning.

        Args:
            keeps: Kept number by unit name, others keep all; or a vector ``(U,)`` of kept numbers
                in the order of :attr:`names`.

        Raises:
            PruningError: If a name is unknown or a number is out of range.
        """
        return self._cost('params', keeps)

    def macs(self, keeps: Keeps) -> int:
        """Return the multiply-accumulates of the model after pruning; see :meth:`params`."""
        return self._cost('macs', keeps)

    def channels(self, keeps: Keeps) -> int:
        """Return the channels that stay in the prunable units, each unit counted once."""
        return int(self.vector(keeps)[self._prunable].sum())

    def saving(self, name: str, keeps: Keeps, kind: str = 'macs') -> float:
        """Return what removing one more channel of a unit saves; see :meth:`savings`."""
        if name not in self._order:
            raise PruningError(f'cost model: unknown channel unit "{name}"')
        return float(self.savings(keeps, kind)[self._order[name]])

    def savings(self, keeps: Keeps, kind: str = 'macs') -> np.ndarray:
        """Return what removing one more channel of each unit, and of no other, saves.

        Args:
            keeps: The present kept numbers, as of :meth:`params`.
            kind: ``'macs'``, ``'params'``, or ``'channels'``.

        Returns:
            ``(U,)``, float64, in the order of :attr:`names`; exact for grouped convolutions too,
            where a unit's channel is one channel of every group.

        Raises:
            PruningError: As of :meth:`params`, or for an unknown kind.
        """
        removed = self.sizes - self.vector(keeps)
        if kind == 'channels':
            return self._prunable.astype(np.float64)
        if kind not in self._weights:
            raise PruningError(f"cost model: kind should be 'macs', 'params' or 'channels', "
                               f'but got {kind!r}')
        ins, outs = self._widths(removed)
        weight = self._weights[kind] / self._groups
        return (self._linear[kind] + (weight * outs) @ self._in_use + (weight * ins) @ self._out_use
                - weight @ self._both_use)

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

    def _widths(self, removed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._in_size - self._in_use @ removed, self._out_size - self._out_use @ removed

    def _products(self, kind: str, ins: np.ndarray, outs: np.ndarray) -> int:
        return int((self._weights[kind] * ins * outs // self._groups).sum())

    def _cost(self, kind: str, keeps: Keeps) -> int:
        removed = self.sizes - self.vector(keeps)
        return int(self._constant[kind] - self._linear[kind] @ removed
                   + self._products(kind, *self._widths(removed)))


class _Terms:
    """The coefficients of the cost formula, gathered layer by layer."""

    def __init__(self, units: UnitSet, dense_macs: Mapping[str, int], model: nn.Module,
                 part: str) -> None:
        self.part = part
        self.modules = dict(model.named_modules())
        if part not in self.modules:
            names = ', '.join(name for name, _ in model.named_children())
            raise PruningError(f'scope of the budget: {type(model).__name__} has no submodule '
                               f'"{part}"; choose from {names}')
        self.macs = {path: int(n) for path, n in dense_macs.items() if self._counts(path)}
        self.total_params = sum(p.numel() for p in self.modules[part].parameters())
        self.total_macs = sum(self.macs.values())
        self.rows: dict[str, int] = {}
        self.ins: list[int] = []
        self.outs: list[int] = []
        self.groups: list[int] = []
        self.kernels: list[int] = []
        self.positions: list[int] = []
        self.entries: dict[str, list[tuple[int, int, int]]] = {'in': [], 'out': []}
        self.linear_params = np.zeros(len(units), dtype=np.int64)
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
            owner, _, name = member.module.rpartition('.')
            tensor = getattr(self.modules[owner], name)
            if isinstance(tensor, nn.Parameter):
                self.linear_params[i] += tensor.numel() // tensor.shape[member.dim] * member.block
            return
        module = self.modules[member.module]
        if is_counted_layer(module):
            self.entries[side].append((self._row(member.module, module), i, member.block))
            if side == 'out' and module.bias is not None:
                self.linear_params[i] += member.block
        elif side == 'out':
            widths = rule_for(module).widths(module)
            width = widths.get('follower', widths.get('producer'))
            own = sum(p.numel() for p in module.parameters(recurse=False))
            self.linear_params[i] += own // width * member.block

    def _row(self, path: str, module: nn.Module) -> int:
        """Return the row of a layer that costs ``in * out``, new at first."""
        if path not in self.rows:
            widths = rule_for(module).widths(module)
            ins, outs = widths['consumer'], widths['producer']
            groups = getattr(module, 'groups', 1)
            pairs = ins * outs // groups
            self.rows[path] = len(self.ins)
            self.ins.append(ins)
            self.outs.append(outs)
            self.groups.append(groups)
            self.kernels.append(module.weight.numel() // pairs)
            self.positions.append(self.macs.get(path, 0) // pairs)
        return self.rows[path]

    def matrices(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the input and output positions of each layer per channel of each unit, (L, U)."""
        matrices = []
        for side in ('in', 'out'):
            matrix = np.zeros((len(self.ins), count), dtype=np.int64)
            for row, unit, block in self.entries[side]:
                matrix[row, unit] += block
            matrices.append(matrix)
        return matrices[0], matrices[1]
