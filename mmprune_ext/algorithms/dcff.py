"""DCFF, dynamic-coded filter fusion, as an algorithm for the Runner."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmprune_ext.algorithms.base import PruneAlgorithm
from mmprune_ext.algorithms.mixing import take_out
from mmprune_ext.compact.compact_model import Units, forget_pretrained
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators import ChannelMutator, DCFFMutator
from mmprune_ext.mutators.dcff_mutator import bake
from mmprune_ext.ops import FuseConv2d
from mmprune_ext.registry import MODELS
from mmprune_ext.scores import fusion_temperature
from mmprune_ext.targets.target import RatioTarget


@MODELS.register_module()
class DCFF(PruneAlgorithm):
    """Train a compact network from scratch whose filters are mixtures of all the dense one's.

    Source: Lin et al., "Training Compact CNNs for Image Classification using Dynamic-coded Filter
    Fusion", arXiv 2107.06916. Widths are chosen when the model is built. Each convolution of a
    pruned unit keeps its ``C`` filters ``W`` and applies ``m`` mixtures ``P W``
    (:class:`mmprune_ext.ops.FuseConv2d`); ``P`` is computed from ``W`` and the temperature
    (:mod:`mmprune_ext.scores.filter_fusion`) by ``mmprune_ext.FusionHook``::

        model = dict(
            type='mmprune_ext.DCFF',
            architecture=dict(type='ImageClassifier', ...),
            mutator=dict(type='mmprune_ext.DCFFMutator'),
            target_pruning_ratio='configs/pruning/mmcls/dcff/resnet_cls.json')

    Args:
        architecture: The model to prune, or its config.
        mutator: A ``DCFFMutator``, or its config; one with its defaults otherwise.
        target_pruning_ratio: What to REMOVE from each unit: a ratio, a dict, a JSON file or a
            sparsity string (:func:`mmprune_ext.targets.target.keeps_from_ratios`).
        budget: Or what REMAINS of the whole: ``dict(flops=0.5)``, spread uniformly.
        checkpoint: Weights of the dense model to start from. Without them training starts from
            the architecture's own initialisation, or the checkpoint that its ``init_cfg`` names.
        units: A channel-unit file with choices, also of a model with another head; a target beside it
            is not read. As a dict, or as the path of a run's checkpoint, it is the structure of a run that
            goes on: ``checkpoint`` is not read then, the weights are the run's own.
        by_epoch: Whether ``P`` is updated by epochs, or by iterations.
        step_freq: Epochs (or iterations) from one update to the next, at least 1.
        init_cfg: Replaces the architecture's own.
        data_preprocessor: Handed in by the Runner from the config's top level.

    Raises:
        ConfigError: For another mutator, or a ``step_freq`` below 1.
        PruningError: For a target that cannot be met or units that cannot be pruned.
    """

    mutator_type = 'mmprune_ext.DCFFMutator'
    required_hooks = (*PruneAlgorithm.required_hooks, 'mmprune_ext.FusionHook')
    by_epoch: bool
    step_freq: int
    scheduled: bool
    _has_weights: bool

    def __init__(self, architecture: nn.Module | Mapping[str, Any],
                 mutator: ChannelMutator | Mapping[str, Any] | None = None,
                 target_pruning_ratio: RatioTarget | None = None,
                 budget: Mapping[str, Any] | None = None,
                 checkpoint: str | None = None,
                 units: Units | None = None,
                 by_epoch: bool = True,
                 step_freq: int = 1,
                 init_cfg: Mapping[str, Any] | None = None, *,
                 data_preprocessor: Mapping[str, Any] | None = None) -> None:
        if isinstance(step_freq, bool) or not isinstance(step_freq, int) or step_freq < 1:
            raise ConfigError('DCFF: step_freq is the number of '
                              f'{"epochs" if by_epoch else "iterations"} between two updates, an '
                              f'integer of at least 1, but got {step_freq!r}')
        super().__init__(architecture, mutator, init_cfg)
        if not isinstance(self.mutator, DCFFMutator):
            raise ConfigError('DCFF: mutator should be a DCFFMutator, but got '
                              f'{type(self.mutator).__name__}')
        self.by_epoch = by_epoch
        self.step_freq = step_freq
        self.scheduled = False  # whether something updates P while this model is trained
        self._has_weights = False
        if units is not None:
            self._take_units(units, checkpoint)
        else:
            self._load_dense(checkpoint)
            self.mutator.prepare(self)
            self.mutator.choose(self, target_pruning_ratio, budget)
        self.mutator.fuse(self)
        forget_pretrained(self)
        kept = sum(unit.keep for unit in self.units.prunable.values())
        total = sum(unit.num_channels for unit in self.units.prunable.values())
        layers = sum(1 for _ in self.fuse_layers())
        print_log(f'DCFF: {kept} of {total} channels in {len(self.units.prunable)} prunable units; '
                  f'{layers} convolutions fuse their filters', logger='current')

    def _load_dense(self, checkpoint: str | None) -> None:
        self._has_weights = self._load_if_any(checkpoint)

    def init_weights(self) -> None:
        """Initialise all filters as the architecture does, and mix them at the first temperature.

        Weights that the dense model brought along stay.
        """
        if not self._has_weights and hasattr(super(), 'init_weights'):
            super().init_weights()
        self._update(fusion_temperature(0, 1))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments and results are its own.

        Raises:
            ConfigError: In training, if nothing updates ``P``.
        """
        if self.training and kwargs.get('mode') == 'loss' and self._is_unattended():
            raise ConfigError("DCFF: nothing updates the mixtures of filters; add "
                              "dict(type='mmprune_ext.FusionHook') to custom_hooks (tools/train.py "
                              'does it by itself), or call update_fusion(step, total) in your loop')
        return super().__call__(*args, **kwargs)

    def _is_unattended(self) -> bool:
        """Whether there are mixtures, which is not so yet while the model is traced, and nothing updates them."""
        return not self.scheduled and any(True for _ in self.fuse_layers())

    def update_fusion(self, step: int, total: int) -> float:
        """Compute every ``P`` from the present filters.

        Args:
            step: Epochs (or iterations) done.
            total: Epochs (or iterations) of the whole training.

        Returns:
            The temperature.
        """
        temperature = fusion_temperature(step, total)
        self.scheduled = True
        self._update(temperature)
        return temperature

    def _update(self, temperature: float) -> None:
        failed = [path for path, layer in self.fuse_layers() if not layer.update(temperature)]
        if failed:
            print_log(f'DCFF: {len(failed)} convolutions hold values that are not finite and keep '
                      f'their mixtures (first: {failed[0]}); did the training diverge?',
                      logger='current', level=logging.WARNING)

    def fuse_layers(self) -> Iterator[tuple[str, FuseConv2d]]:
        """Yield the convolutions that fuse their filters, with their paths in the model."""
        for path, module in self.named_modules():
            if isinstance(module, FuseConv2d):
                yield path, module

    def export_model(self) -> nn.Module:
        """Return a compact copy of the model whose plain convolutions hold ``P W``."""
        return take_out(bake(self))
