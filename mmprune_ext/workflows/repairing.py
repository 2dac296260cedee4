"""What `tools/repair.py` does: an exported compact model gets better weights from its dense origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from mmprune_ext.compact.checkpoint import load_weights, read_checkpoint, units_of_compact
from mmprune_ext.compact.compact_model import CompactModel, build_architecture, load_units
from mmprune_ext.compact.export import Exported, Extras, export
from mmprune_ext.errors import CheckpointError, ConfigError, UnitFileError
from mmprune_ext.model_config import architecture_of, is_compact
from mmprune_ext.repair.mending import Mending, mend
from mmprune_ext.settings.as_tested import training_images
from mmprune_ext.settings.finetune import Finetune, with_schedule
from mmprune_ext.units import UnitSet
from mmprune_ext.units.demo_inputs import counting_inputs
from mmprune_ext.workflows.pruning import require_dense

# What the weights are called that the compact model comes with.
GIVEN = 'as given'


def repair_compact(config: Config, checkpoint: str | None, dense_config: Config, dense_checkpoint: str,
                   folder: str | Path, images: int = 1024, bn_batches: int = 20,
                   input_size: Sequence[int] | None = None, extras: Extras | None = None,
                   finetune: Finetune | None = None) -> Exported:
    """Repair a compact model by the dense model that it was pruned from, and export the result.

    Args:
        config: The compact model's config, with the training data.
        checkpoint: Its weights; by default those that the config names.
        dense_config: The config of the dense model.
        dense_checkpoint: Its weights.
        folder: Where to write.
        images: Training images that the weights are solved for on.
        bn_batches: Training batches for new batch statistics, one of the states that are compared.
        input_size: ``(H, W)`` to count on; the config's own by default.
        extras: What the report tells beside costs.
        finetune: What the compact config's schedule is to fit; by default it is that of the config.

    Raises:
        ConfigError: If the first config is of no compact model, or the second is of none that is dense.
        UnitFileError: If the units are not those of the dense model, or do not say which channels stay.
        CheckpointError: If weights do not fit.
    """
    if not is_compact(config.model):
        raise ConfigError(f'the config\'s model is a {config.model.type}, no compact model; give the '
                          'compact_config.py that tools/prune.py or tools/export_compact.py wrote. A model that is '
                          'still to be pruned is repaired by tools/prune.py --repair')
    require_dense(dense_config)
    if is_compact(dense_config.model):
        raise ConfigError('--dense: the config is of a compact model; give the config and the weights of the model '
                          'that was pruned')
    checkpoint = checkpoint or _named_weights(config)
    units = _units(config, checkpoint)
    MMLogger.get_instance('mmprune_ext')
    config = with_schedule(config, finetune)
    dense = build_architecture(dense_config.model.to_dict(), dense_config.get('data_preprocessor'))
    if not units.describes(dense):
        units.check(dense, f'--dense: {config.model.units!s:.200}')
        raise UnitFileError(f'--dense: the compact model was pruned from another {type(dense).__name__}: layers that '
                            'its units do not name have other shapes; give the config of the model that was pruned')
    load_weights(dense, dense_checkpoint)
    architecture = architecture_of(config.model.to_dict())
    model: nn.Module = CompactModel(architecture, units, data_preprocessor=config.get('data_preprocessor'))
    meta = load_weights(model, checkpoint)
    mended = mend(model, dense, units, Mending(images, bn_batches, training_images(config)), given=GIVEN)
    return export(model, units, config, architecture, folder, counting_inputs(config, input_size), meta,
                  replace(extras or Extras(), mended=mended))


def _named_weights(config: Config) -> str:
    init = config.model.get('init_cfg') or {}
    if init.get('checkpoint') is None:
        raise CheckpointError('no weights to repair: the compact config names none; give them as CHECKPOINT')
    return str(init['checkpoint'])


def _units(config: Config, checkpoint: str) -> UnitSet:
    """Return the channel units of a compact model, which say which channels its weights are.

    Raises:
        ConfigError: If the config does not name them.
        UnitFileError: If they prune nothing, or do not say which channels stay.
        CheckpointError: If the weights are of other channels, or those of a pruning run.
    """
    source = config.model.get('units')
    if source is None:
        raise ConfigError('the compact config names no units, which say which channels its weights are; set '
                          'model.units to the units.json of the pruned model')
    units = load_units(source)
    units.require_choice(str(source) if isinstance(source, (str, Path)) else 'model.units')
    if units.stripes or units.shortcuts:
        raise ConfigError('the compact model has lost stripes of its filters or whole blocks, which a repair does not '
                          'know; it is for models that have lost channels')
    if read_checkpoint(checkpoint)['run_units'] is not None:
        raise CheckpointError(f'checkpoint {checkpoint} is of a pruning run; export it with tools/export_compact.py, '
                              'and give what that wrote')
    stored = units_of_compact(checkpoint)
    if stored is not None and any(
            name not in stored or stored[name].indices != unit.indices for name, unit in units.items()):
        raise CheckpointError(f'checkpoint {checkpoint} keeps other channels than {source!s:.200} says; give the '
                              'units.json that was written with it')
    return units
