"""Build a compact model from its architecture and a channel-unit file."""

from __future__ import annotations

import contextlib
import copy
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mmprune_ext.compact.checkpoint import load_weights, read_checkpoint
from mmprune_ext.errors import CheckpointError, ConfigError, UnitFileError
from mmprune_ext.model_config import architecture_of, is_compact, with_settings
from mmprune_ext.registry import MODELS
from mmprune_ext.units import ChannelUnit, UnitSet
from mmprune_ext.units.slimming import removed_positions, slim_checked
from mmprune_ext.units.stripes import LayerStripes

Units = UnitSet | Mapping[str, Any] | str | Path


def build_architecture(architecture: nn.Module | Mapping[str, Any],
                       data_preprocessor: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the user's model.

    Args:
        architecture: The model, or its config.
        data_preprocessor: The config's top-level one, which the Runner hands to the outer model;
            it is used where the architecture names none.

    Raises:
        ConfigError: If the config is no model config or its type is not registered.
    """
    if isinstance(architecture, nn.Module):
        return architecture
    if not isinstance(architecture, Mapping) or 'type' not in architecture:
        raise ConfigError('architecture should be the config of a model with a "type", but got '
                          f'{architecture!r:.200}')
    # mmdet's models read their settings as attributes (train_cfg.rpn), which plain dicts lack.
    config = ConfigDict(copy.deepcopy(dict(architecture)))
    if data_preprocessor is not None and config.get('data_preprocessor') is None:
        config['data_preprocessor'] = data_preprocessor
    return ROOT_MODELS.build(config)


def is_unit_file(units: Units | None) -> bool:
    """Whether units are given as the path of a channel-unit file, and not of a run's checkpoint."""
    return isinstance(units, (str, Path)) and not zipfile.is_zipfile(units)


def load_units(units: Units) -> UnitSet:
    """Return units given as themselves, as the content of a file, or as its path.

    The path may be that of a pruning run's checkpoint, which holds them beside the weights.

    Raises:
        UnitFileError: If the file is missing or is no channel-unit file.
        CheckpointError: If a checkpoint cannot be read, or is not of a pruning run.
    """
    if isinstance(units, UnitSet):
        return units
    if isinstance(units, Mapping):
        return UnitSet.from_dict(dict(units), 'units')
    if not zipfile.is_zipfile(units):
        return UnitSet.load(units)
    found = read_checkpoint(units)['run_units']
    if found is None:
        raise CheckpointError(f'units: checkpoint {units} is not of a pruning run, it holds no channel '
                              'units')
    return found


def relative_to_dense(architecture: Mapping[str, Any],
                      units: UnitSet) -> tuple[Mapping[str, Any], UnitSet]:
    """Return the dense architecture and the units of a model that was pruned more than once.

    Args:
        architecture: Config of the model that was pruned; where it is a compact model itself, the
            choices of both rounds are joined.
        units: The units of that model, with choices.

    Raises:
        UnitFileError: If the two rounds found different units.
    """
    if not is_compact(architecture):
        return architecture, units
    before = load_units(architecture['units'])
    return architecture_of(architecture), joined_units(before, units, f'{architecture["units"]!r:.100}')


def joined_units(before: UnitSet, units: UnitSet, source: str) -> UnitSet:
    """Return the units of a dense model that was pruned twice, with what both rounds have left.

    Args:
        before: The units of the dense model with the choices of the first round, which are changed.
        units: Those of the model that these leave, with the choices of the second round.
        source: Where the first come from, for messages.

    Raises:
        UnitFileError: If the two rounds found different units.
    """
    removed = removed_positions(before)
    renewed = {}
    for name, unit in units.items():
        first = _in_first_round(unit, before)
        if first is not None and not (first.prunable or unit.prunable) \
                and first.keep == first.num_channels != unit.num_channels:
            renewed[first.name] = unit  # outputs for another number of classes
            continue
        if first is None or first.keep != unit.num_channels:
            raise UnitFileError(f'unit "{name}" of the compact model is not a unit of the dense one '
                                f'({source}); prune the dense model anew')
        if unit.indices is None:
            continue
        if unit.prunable:
            first.prunable, first.reason, first.detail = True, None, ''
        kept = range(first.num_channels) if first.indices is None else first.indices
        first.choose([kept[i] for i in unit.indices])
    joined = before.with_units([renewed.get(name, unit) for name, unit in before.items()])
    _join_stripes(joined, units, removed)
    return joined


def _in_first_round(unit: ChannelUnit, units: UnitSet) -> ChannelUnit | None:
    """Return the unit of the dense model that one of the compact model is what is left of.

    It may bear another name, where the layer that gave it was of a block that is its shortcut now.
    """
    own = {member.module for member in unit.producers}
    sharing = (other for other in units.values() if own & {member.module for member in other.producers})
    return units.get(unit.name) or next(sharing, None)


def _join_stripes(joined: UnitSet, units: UnitSet, removed: Mapping[tuple[str, str, int | None], np.ndarray]) -> None:
    """Add the stripes and blocks that a second round has chosen to those of the first.

    Args:
        joined: The units of the dense model, changed.
        units: Those of the second round, whose filters are those that the first has left.
        removed: Which outputs of the dense model's layers the first round has removed.
    """
    for path, layer in units.stripes.items():
        gone = removed.get((path, 'out', None), np.empty(0, dtype=np.int64))
        count = len(layer.keep) + len(gone)
        stays = np.setdiff1d(np.arange(count), gone)
        if path in joined.stripes:
            # Of a kernel that the first round has made smaller, to the box of positions that it has left.
            keep = joined.stripes[path].keep.copy()
            rows, columns = (np.flatnonzero(keep[stays].any((0, axis))) for axis in (2, 1))
            box = np.ix_(stays, range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1))
        else:
            keep = np.ones((count, *layer.kernel_size), dtype=bool)
            box = (stays,)
        keep[box] &= layer.keep
        joined.stripes[path] = LayerStripes(keep, layer.form)
    joined.shortcuts.update(units.shortcuts)


def _for_other_outputs(units: UnitSet, model: nn.Module) -> tuple[UnitSet, dict[str, int | None]]:
    """Return the units without those that stay whole and have another width in this model.

    The channels found on one data set serve a model for another number of classes, which may be read
    again by layers of the head (PointRend refines its own first prediction).

    Returns:
        The units that are left, and the paths of the layers of the others, with the outputs that these have there.
    """
    modules = dict(model.named_modules())
    ends: dict[str, int] = {}  # of a layer's outputs, which may be those of several units
    for member in (member for unit in units.values() for member in unit.producers):
        ends[member.module] = max(member.end, ends.get(member.module, 0))

    def differs(unit: ChannelUnit) -> bool:
        layers = {member.module: modules.get(member.module) for member in unit.producers}
        return not unit.prunable and any(
            getattr(layer, 'weight', None) is not None and layer.weight.shape[0] != ends[path]
            for path, layer in layers.items())

    other = {name: unit for name, unit in units.items() if differs(unit)}
    left = units.with_units([unit for name, unit in units.items() if name not in other])
    paths = {member.module: ends.get(member.module) for unit in other.values() for member in unit.members}
    left.stripes = {path: layer for path, layer in left.stripes.items()
                    if not (path in paths and modules[path].weight.shape[0] != len(layer.keep))}
    return left, paths


@MODELS.register_module()
class CompactModel:
    """The compact form of an architecture; building it gives the architecture's own class.

    The dense architecture is built and slimmed by a channel-unit file, without tracing. What comes
    back is the slimmed detector, classifier ... itself: its checkpoint has the plain names of the
    dense model, and every tool of the task libraries takes it::

        model = dict(
            type='mmprune_ext.CompactModel',
            architecture='ImageClassifier',
            backbone=dict(type='ResNet', depth=50),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048),
            units='units.json',
            init_cfg=dict(type='Pretrained', checkpoint='compact.pth'))

    Args:
        architecture: Registered type of the dense model, whose other keys are given as ``settings``; or
            its whole config; or the model.
        units: Channel-unit file (written with ``-c``) with choices, or its content.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads the compact weights at once. Outputs
            for another number of classes than there start anew, with a warning, or, with
            ``strict=True``, are an error.
        data_preprocessor: Handed in by the Runner from the config's top level.
        settings: Keys of the dense model's config.

    Raises:
        UnitFileError: If the file does not fit the architecture.
        CheckpointError: If the checkpoint does not fit the compact model.
        ConfigError: If ``init_cfg`` is of another kind, or settings are given for a model that is built.
    """

    def __new__(cls, architecture: nn.Module | Mapping[str, Any] | str, units: Units,
                init_cfg: Mapping[str, Any] | None = None,
                data_preprocessor: Mapping[str, Any] | None = None, **settings: Any) -> nn.Module:
        if isinstance(architecture, nn.Module):
            if settings:
                raise ConfigError(f'CompactModel: settings ({", ".join(settings)}) are given for an architecture '
                                  'that is a model already; give its type or config')
        else:
            architecture = with_settings(architecture, settings)
        with postponed_initialisation() as postponed:
            model = build_architecture(architecture, data_preprocessor)
        known, others = _for_other_outputs(load_units(units), model)
        known.check(model, str(units) if isinstance(units, (str, Path)) else 'units', others)
        slim_checked(model, known)
        forget_pretrained(model)
        if init_cfg is None or others:
            for layer in postponed:
                layer.reset_parameters()
        if init_cfg is not None:
            _load_compact(model, init_cfg, others)
        return model


def _load_compact(model: nn.Module, init_cfg: Mapping[str, Any], others: Collection[str]) -> None:
    if init_cfg.get('type') != 'Pretrained' or 'checkpoint' not in init_cfg:
        raise ConfigError("CompactModel: init_cfg should be dict(type='Pretrained', "
                          f'checkpoint=...), but got {init_cfg!r}')
    others = () if init_cfg.get('strict') else others
    if others and hasattr(model, 'init_weights'):
        # Outputs that start anew start as their head initialises them. The list of all values drawn, which mmengine
        # logs, would be one of values that are loaded right after.
        model._dump_init_info = lambda: None
        model.init_weights()
        del model._dump_init_info
    load_weights(model, init_cfg['checkpoint'], others)
    model.init_cfg = {'type': 'Pretrained', 'checkpoint': init_cfg['checkpoint']}
    model.is_init = True
    # The Runner initialises before it trains, and some models draw random values whatever their init_cfg.
    model.init_weights = keep_weights


def keep_weights() -> None:
    """Stand in for ``init_weights`` of a model whose weights were loaded when it was built."""


@contextlib.contextmanager
def postponed_initialisation() -> Iterator[list[nn.Module]]:
    """Give the convolution and linear layers built in this block memory, but no random values.

    Drawing those values is most of what building a network costs. Of a layer that is slimmed at once,
    or loaded from a checkpoint, most or all would be thrown away. A layer that its network gives
    special values while it is built keeps them.

    Yields:
        A list that holds, after the block, the layers whose ``reset_parameters()`` is still to be
        called.
    """
    postponed: list[nn.Module] = []
    versions: dict[Tensor, int] = {}
    originals = {cls: cls.reset_parameters for cls in (_ConvNd, nn.Linear)}

    def postpone(layer: nn.Module) -> None:
        postponed.append(layer)
        versions.update({value: value._version for value in layer.parameters(recurse=False)})

    try:
        for cls in originals:
            cls.reset_parameters = postpone
        yield postponed
    finally:
        for cls, original in originals.items():
            cls.reset_parameters = original
    for layer in list(postponed):
        values = list(layer.parameters(recurse=False))
        special = [value for value in values if value._version != versions.get(value)]
        if not special:
            continue
        postponed.remove(layer)
        if len(special) < len(values):
            kept = [value.detach().clone() for value in special]
            layer.reset_parameters()
            for value, before in zip(special, kept):
                value.data.copy_(before)


def names_pretrained(model: nn.Module) -> bool:
    """Whether a part of the model initialises from a checkpoint."""
    configs = [getattr(module, 'init_cfg', None) for module in model.modules()]
    return any(c.get('type') == 'Pretrained' for config in configs if config
               for c in (config if isinstance(config, list) else [config]))


def forget_pretrained(model: nn.Module) -> None:
    """Drop the dense checkpoints that the parts of a slimmed model would initialise from."""
    for module in model.modules():
        config = getattr(module, 'init_cfg', None)
        if isinstance(config, Mapping) and config.get('type') == 'Pretrained':
            module.init_cfg = None
        elif isinstance(config, list):
            module.init_cfg = [c for c in config if c.get('type') != 'Pretrained'] or None
