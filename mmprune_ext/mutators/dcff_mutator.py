"""DCFF (Lin et al., "... using Dynamic-coded Filter Fusion", arXiv 2107.06916)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mmprune_ext.errors import TargetError, UnitFileError
from mmprune_ext.mutators.base import ChannelMutator
from mmprune_ext.ops import FuseConv2d, FusionPart, ZeroPadShortcut
from mmprune_ext.ops.in_place import has_hooks, is_plain_conv, turn_into
from mmprune_ext.registry import MODELS
from mmprune_ext.targets.target import Budget, RatioTarget
from mmprune_ext.units import ChannelUnit, Reason, UnitSet, slim
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.slimming import removed_positions
from mmprune_ext.units.unit import Member


@MODELS.register_module()
class DCFFMutator(ChannelMutator):
    """Give a network its compact widths and put fusing convolutions in place of pruned ones.

    The arguments are those of :class:`ChannelMutator`. Only widths are chosen, before training:
    which filters make up the channels that stay is decided in training, anew at every update.
    """

    needs_scores = False
    sparsity_layouts = ('units', 'blocks', 'dcff')

    def prepare(self, model: nn.Module, units: UnitSet | None = None) -> UnitSet:
        """Find the units of a dense model, or take known ones (of a run that is resumed).

        A unit with a layer whose filters cannot be fused stays whole.

        Raises:
            PruningError: If no unit can be pruned, or known units do not fit the model.
        """
        found = super().prepare(model, units)
        modules = dict(model.named_modules())
        for unit in found.prunable.values():
            unfit = _unfit_layer(unit, modules, found.functional)
            if not unfit:
                continue
            if unit.keep < unit.num_channels:
                raise UnitFileError(f'unit "{unit.name}" keeps {unit.keep} of {unit.num_channels} '
                                    f'channels, but {unfit}')
            unit.forbid(Reason.LAYER, unfit)
        found.require_prunable()
        return found

    def choose(self, model: nn.Module, ratios: RatioTarget | None = None,
               budget: Mapping[str, Any] | None = None) -> UnitSet:
        """Choose how many channels stay of each unit, without a look at the weights.

        Args:
            model: The dense model.
            ratios: A per-unit target (:func:`mmprune_ext.targets.target.keeps_from_ratios`).
            budget: A global target, spread uniformly; exactly one of the two is given.

        Raises:
            TargetError: For a malformed target, or one that cannot be met.
        """
        if budget is not None and Budget.from_config(budget).spread != 'uniform':
            raise TargetError("budget: DCFF chooses widths before training, when no score tells "
                              "channels apart; use spread='uniform'")
        for name, keep in self.kept_numbers(model, ratios, budget).items():
            unit = self.units[name]
            # The middle ones: a shortcut that pads with zero channels on both sides (option A)
            # then passes on as many channels as fit.
            first = (unit.num_channels - keep) // 2
            unit.choose(range(first, first + keep))
        return self.units

    def fuse(self, model: nn.Module) -> nn.Module:
        """Make a dense model compact, in place, but for the filters of pruned layers.

        These become :class:`~mmprune_ext.ops.FuseConv2d` layers with all their filters, which read
        the channels that stay and put out as many as their unit keeps. Until the first update the
        model computes what the slimmed one does.
        """
        removed = removed_positions(self.units)
        modules = dict(model.named_modules())
        dense: dict[str, nn.Conv2d] = {}
        for unit in self.units.values():
            for member in [*unit.producers, *unit.followers]:
                layer = modules.get(member.module)
                if (member.module, 'out', None) in removed and isinstance(layer, nn.Conv2d):
                    dense[member.module] = copy.deepcopy(layer)
        parts = {path: self._parts(path, layer) for path, layer in dense.items()}
        slim(model, self.units)
        for path, layer in dense.items():
            gone = removed.get((path, 'in', None))
            if gone is not None:
                stays = np.delete(np.arange(layer.in_channels), gone)
                rule_for(layer).slim(layer, torch.from_numpy(stays), None)
            turn_into(modules[path], FuseConv2d(layer, parts[path]))
        return model

    def _parts(self, path: str, layer: nn.Conv2d) -> list[FusionPart]:
        """Return which rows of a layer are fused with each other: those of one pruned unit."""
        members = [(unit, member) for unit in self.units.values()
                   for member in [*unit.producers, *unit.followers]
                   if member.module == path and unit.keep < unit.num_channels]
        stays = np.ones(layer.out_channels, dtype=bool)
        for unit, member in members:
            stays[_dropped(unit, member)] = False
        outputs = np.cumsum(stays) - 1  # where a row that stays lies among those that do
        found = []
        for unit, member in members:
            rows = member.positions(unit.num_channels)
            start = np.asarray(unit.indices)
            found.append(FusionPart(rows, outputs[rows[start]], start))
        return found


def bake(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its fusing convolutions turned into plain ones."""
    model = copy.deepcopy(model)
    for layer in [module for module in model.modules() if isinstance(module, FuseConv2d)]:
        turn_into(layer, layer.fused_conv())
    return model


def _dropped(unit: ChannelUnit, member: Member) -> np.ndarray:
    return member.places(np.setdiff1d(np.arange(unit.num_channels), unit.indices))


def _unfit_layer(unit: ChannelUnit, modules: Mapping[str, nn.Module], functional: Collection[str]) -> str:
    """Return what keeps a unit's filters from being fused, empty if nothing does."""
    for member in (*unit.producers, *unit.followers):
        if member.module in functional:
            return ('DCFF puts layers of its own in the place of convolutions, and the code uses the weight of '
                    f'"{member.module}" itself')
    for member in unit.producers:
        layer = modules.get(member.module)
        if isinstance(layer, ZeroPadShortcut):
            continue
        if not is_plain_conv(layer) or layer.groups > 1 or has_hooks(layer):
            return _unfit(member, layer)
    for member in unit.followers:
        layer = modules.get(member.module)
        if isinstance(layer, nn.modules.conv._ConvNd) and (not is_plain_conv(layer) or has_hooks(layer)):
            return _unfit(member, layer)
    return ''


def _unfit(member: Member, layer: nn.Module | None) -> str:
    kind = 'a parameter' if layer is None else type(layer).__name__
    if is_plain_conv(layer):
        if has_hooks(layer):
            return (f'DCFF puts layers of its own in the place of convolutions, and "{member.module}" '
                    'has forward hooks, which would be lost')
        kind = 'a grouped convolution'
    return (f'DCFF fuses the filters of plain and depthwise 2-D convolutions, and '
            f'"{member.module}" is {kind}')
