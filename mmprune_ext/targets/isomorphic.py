"""Ranking among units of like structure (Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024).

Scores of one method compare where the layers that they are made of are alike, and not from a wide layer to a narrow
one, or from a residual stream to the inside of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmprune_ext.targets.budget import Keeps, KeepsPath, rank_path
from mmprune_ext.units import ChannelUnit, UnitSet
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.unit import Member

Structure = tuple[Any, ...]


def structure_of(unit: ChannelUnit, model: nn.Module) -> Structure:
    """Return what is equal for two units of like structure.

    It is the number of channels, and for each layer that makes, carries or reads them: its role, its type, the widths
    of its two sides, its kernel, its groups, and how many of its positions a channel takes. The order of the layers,
    their strides and where they stand do not matter; how many there are does.

    Args:
        unit: A unit of the model.
        model: The dense model.
    """
    roles = (('producer', unit.producers), ('follower', unit.followers), ('consumer', unit.consumers))
    members = sorted(_described(role, member, model) for role, found in roles for member in found)
    return unit.num_channels, *members


def _described(role: str, member: Member, model: nn.Module) -> tuple[str, ...]:
    """Return a member's part of its unit's structure, as texts, which can be sorted."""
    if member.dim is not None:
        owner, _, name = member.module.rpartition('.')
        shape = tuple(getattr(model.get_submodule(owner), name).shape)
        return role, 'parameter', str(shape), str(member.dim), str(member.block)
    layer = model.get_submodule(member.module)
    return (role, type(layer).__name__, str(sorted(rule_for(layer).widths(layer).items())),
            str(getattr(layer, 'kernel_size', None)), str(getattr(layer, 'groups', None)), str(member.block))


def isomorphic_groups(units: UnitSet, model: nn.Module) -> list[list[str]]:
    """Return the names of the prunable units in groups of like structure, in the order of the units."""
    groups: dict[Structure, list[str]] = {}
    for name, unit in units.prunable.items():
        groups.setdefault(structure_of(unit, model), []).append(name)
    return list(groups.values())


def isomorphic_path(units: UnitSet, model: nn.Module, scores: Mapping[str, Tensor]) -> KeepsPath:
    """Return the path on which each group of like units loses the same share of its channels, those of lowest score.

    Args:
        units: The dense model's units.
        model: The dense model.
        scores: Scores ``(num_channels,)`` of each prunable unit, comparable within a group.
    """
    paths = [rank_path(units, {name: scores[name] for name in group}) for group in isomorphic_groups(units, model)]

    def path(share: float) -> Keeps:
        return {name: keep for of_group in paths for name, keep in of_group(share).items()}
    return path
