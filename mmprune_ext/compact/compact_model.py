"""Build a compact model from its architecture and a channel-unit file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import MODELS
from mmprune_ext.units import UnitSet
from mmprune_ext.units.slimming import slim_checked
from mmprune_ext.units.spec import from_dict

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
    config = copy.deepcopy(dict(architecture))
    if data_preprocessor is not None and config.get('data_preprocessor') is None:
        config['data_preprocessor'] = data_preprocessor
    return ROOT_MODELS.build(config)


def load_units(units: Units) -> UnitSet:
    """Return units given as themselves, as the content of a file, or as its path."""
    if isinstance(units, UnitSet):
        return units
    if isinstance(units, Mapping):
        return from_dict(dict(units), 'units')
    return UnitSet.load(units)


@MODELS.register_module()
class CompactModel:
    """The compact form of an architecture; building it gives the architecture's own class.

    The dense architecture is built and slimmed by a channel-unit file, without tracing. What comes
    back is the slimmed detector, classifier ... itself: its checkpoint has the plain names of the
    dense model, and every tool of the task libraries takes it.

    Args:
        architecture: Config of the dense model.
        units: Channel-unit file (written with ``-c``) with choices, or its content.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads the compact weights at once.
        data_preprocessor: Handed in by the Runner from the config's top level.

    Raises:
        UnitFileError: If the file does not fit the architecture.
        CheckpointError: If the checkpoint does not fit the compact model.
    """

    def __new__(cls, architecture: nn.Module | Mapping[str, Any], units: Units,
                init_cfg: Mapping[str, Any] | None = None,
                data_preprocessor: Mapping[str, Any] | None = None) -> nn.Module:
        model = build_architecture(architecture, data_preprocessor)
        known = load_units(units)
        known.check(model, str(units) if isinstance(units, (str, Path)) else 'units')
        slim_checked(model, known)
        forget_pretrained(model)
        if init_cfg is not None:
            if init_cfg.get('type') != 'Pretrained' or 'checkpoint' not in init_cfg:
                raise ConfigError("CompactModel: init_cfg should be dict(type='Pretrained', "
                                  f'checkpoint=...), but got {init_cfg!r}')
            load_weights(model, init_cfg['checkpoint'])
            # The Runner initialises before it trains; this makes it load the same weights again.
            model.init_cfg = dict(init_cfg)
        return model


def forget_pretrained(model: nn.Module) -> None:
    """Drop the dense checkpoints that the parts of a slimmed model would initialise from."""
    for module in model.modules():
        config = getattr(module, 'init_cfg', None)
        if isinstance(config, Mapping) and config.get('type') == 'Pretrained':
            module.init_cfg = None
        elif isinstance(config, list):
            module.init_cfg = [c for c in config if c.get('type') != 'Pretrained'] or None
