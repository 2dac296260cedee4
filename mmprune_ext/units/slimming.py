"""Make a model physically smaller by the choices of its channel units, and by stripes of filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mmprune_ext.ops.in_place import conv_with, turn_into
from mmprune_ext.ops.shortcut_block import ShortcutBlock
from mmprune_ext.ops.stripe_conv2d import StripeConv2d
from mmprune_ext.ops.stripe_layout import StripeLayout
from mmprune_ext.sizes import (
    Heads,
    HeadWidth,
    Multihead,
    PaddedHeads,
    TwoWays,
    is_followed,
    renew_encoders,
    renew_sizes,
    takes_width_of_input,
)
from mmprune_ext.units.layers import rule_for, select_parameter
from mmprune_ext.units.parameters.optimizers import warn_of_training
from mmprune_ext.units.unit import ChannelUnit
from mmprune_ext.units.unit_set import UnitSet

# Called on a model that is about to be slimmed; what each returns is called afterwards.
AROUND: list[Callable[[nn.Module], Callable[[], None]]] = []

Removed = dict[tuple[str, str, int | None], np.ndarray]


def removed_positions(units: UnitSet) -> Removed:
    """Return the positions to remove, by layer path, side (``in``, ``out``) and parameter dim."""
    removed: dict[tuple[str, str, int | None], list[np.ndarray]] = {}
    for unit in units.values():
        if unit.keep == unit.num_channels:
            continue
        gone = np.ones(unit.num_channels, dtype=bool)
        gone[unit.indices] = False
        drop = np.flatnonzero(gone)
        for side, members in (('out', [*unit.producers, *unit.followers]), ('in', unit.consumers)):
            for member in members:
                places = member.places(drop)
                removed.setdefault((member.module, side, member.dim), []).append(places)
    return {key: places[0] if len(places) == 1 else np.concatenate(places)
            for key, places in removed.items()}


class _Kept(dict[tuple[int, bytes], Tensor]):
    """Positions that stay, by size and removed positions: layers in a row have the same."""

    def of(self, size: int, removed: np.ndarray | None) -> Tensor | None:
        """Return the positions that stay, ``None`` for all."""
        if removed is None:
            return None
        key = (size, removed.tobytes())
        if key not in self:
            stays = np.ones(size, dtype=bool)
            stays[removed] = False
            self[key] = torch.from_numpy(np.flatnonzero(stays))
        return self[key]


def slim(model: nn.Module, units: UnitSet) -> nn.Module:
    """Remove, in place, all channels that are not among each unit's ``indices``.

    Args:
        model: The dense model that the units belong to.
        units: Its channel units with choices.

    Returns:
        The same model. Parameters of slimmed layers are new objects: build the optimizer after. One that holds the
        former ones is warned of, and so is a model of which nothing can be trained.

    Raises:
        UnitFileError: If the units do not fit the model; the model is then unchanged.
    """
    units.check(model)
    before = dict(model.named_parameters())
    slim_checked(model, units)
    warn_of_training(model, before)
    return model


def slim_checked(model: nn.Module, units: UnitSet) -> nn.Module:
    """Do what :func:`slim` does for units that are known to fit the model."""
    removed = removed_positions(units)
    modules = dict(model.named_modules())
    attention = [HeadWidth(module) for module in modules.values() if takes_width_of_input(module)]
    heads = _heads_of(modules)
    two_ways = [TwoWays(module) for module in modules.values() if TwoWays.applies(module)]
    kept = _Kept()
    updates = [note(model) for note in AROUND]
    for path in dict.fromkeys(key[0] for key in removed):
        module = modules.get(path)
        rule = None if module is None else rule_for(module)
        if rule is None:
            continue
        widths = rule.widths(module)
        rule.slim(module,
                  kept.of(widths.get('consumer', 0), removed.get((path, 'in', None))),
                  kept.of(widths.get('producer', widths.get('follower', 0)),
                          removed.get((path, 'out', None))))
    for (path, _, dim), places in removed.items():
        if dim is not None:
            owner, _, name = path.rpartition('.')
            parent = modules[owner]
            select_parameter(parent, name, dim, kept.of(getattr(parent, name).shape[dim], places))
    for reader, before in heads.items():
        places = removed.get((reader, 'in', None))
        before.renew(None if places is None else np.isin(np.arange(before.inner), places))
    for two in two_ways:
        two.renew()
    renew_encoders(model)
    renew_sizes(model)
    for update in updates:
        update()
    for joint in attention:
        joint.put_where_needed()
    for module in modules.values():
        PaddedHeads.put_where_needed(module)
    _remove_stripes(model, units, removed)
    return model


def _heads_of(modules: Mapping[str, nn.Module]) -> dict[str, Heads | Multihead]:
    """Return the heads of a model by the path of the layer that reads them."""
    found: dict[str, Heads | Multihead] = {}
    for path, module in modules.items():
        inside = f'{path}.' if path else ''
        if isinstance(module, nn.MultiheadAttention):
            if is_followed(module):
                found[f'{inside}out_proj'] = Multihead(module)
        elif (heads := Heads(module)).reader:
            found[f'{inside}{heads.reader}'] = heads
    return found


def _remove_stripes(model: nn.Module, units: UnitSet, removed: Removed) -> None:
    """Put what is left of convolutions and blocks that have lost stripes in their place, in a slimmed model."""
    for path, stripes in units.stripes.items():
        stays = np.ones(len(stripes.keep), dtype=bool)
        stays[removed.get((path, 'out', None), [])] = False
        keep = torch.from_numpy(stripes.keep[stays])
        layer = model.get_submodule(path)
        if not keep.all():
            form = stripes.form or 'dense'
            turn_into(layer, smaller_kernel(layer, keep) or StripeConv2d.from_conv(layer, keep, form))
    for path, shortcut in units.shortcuts.items():
        block = model.get_submodule(path)
        turn_into(block, ShortcutBlock(block, shortcut.layer, shortcut.activation))


def smaller_kernel(conv: nn.Conv2d, keep: Tensor) -> nn.Conv2d | None:
    """Return a convolution of the kernel positions that are left, ``None`` where no plain one computes the same.

    Args:
        conv: A convolution.
        keep: Which stripes stay, bool ``(C_out, kH, kW)``; those left have to be all of a box of positions, around
            which zeros are padded evenly.
    """
    if conv.padding_mode != 'zeros' or not keep.any():
        return None
    layout = StripeLayout.of(conv, keep)
    box, (padding, uneven) = (slice(None), *layout.box), layout.box_pads()
    if uneven is not None or not keep[box].all():
        return None
    weight = conv.weight.detach()[(slice(None), *box)].clone()
    return conv_with(conv, nn.Parameter(weight, conv.weight.requires_grad), conv.bias,
                     kernel_size=tuple(weight.shape[2:]), padding=padding)


def random_choice(units: list[ChannelUnit], generator: np.random.Generator) -> None:
    """Keep a random share (at least 2 where there are 3 or more) of each unit's channels.

    The first and the last go, of three channels one of them: code that cuts at a number, or that moves some channels
    from one end to the other, then takes others than before. Units of one width that meet in a layer lose differently
    many where that can be: code that takes the half of what it finds would take that of both.
    """
    taken: dict[tuple[str, int], set[int]] = {}
    for unit in units:
        most = unit.num_channels - (2 if unit.num_channels > 3 else 1)
        least = max(min(2, most), 1)
        keep = max(min(int(round(unit.num_channels * generator.uniform(0.4, 0.8))), most), least)
        beside = [taken.setdefault((member.module, unit.num_channels), set()) for member in unit.members]
        free = set(range(least, most + 1)).difference(*beside)
        keep = min(free, key=lambda other: (abs(other - keep), other), default=keep)
        for others in beside:
            others.add(keep)
        ends = generator.permutation([0, unit.num_channels - 1])[:unit.num_channels - keep]
        unit.choose(generator.choice(np.setdiff1d(np.arange(unit.num_channels), ends), keep, replace=False))
