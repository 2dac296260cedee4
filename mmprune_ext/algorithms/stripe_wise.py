"""Stripe-wise pruning, "Pruning Filter in Filter", as an algorithm for the Runner."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune_ext.algorithms.base import PruneAlgorithm
from mmprune_ext.algorithms.mixing import take_out
from mmprune_ext.compact.compact_model import Units, forget_pretrained, is_unit_file, load_units
from mmprune_ext.compact.dead_blocks import find_shortcuts
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators import ChannelMutator, StripeMutator
from mmprune_ext.ops import SkeletonConv2d
from mmprune_ext.ops.in_place import turn_into
from mmprune_ext.ops.stripe_conv2d import FORMS
from mmprune_ext.registry import MODELS
from mmprune_ext.units import UnitSet, slim


@MODELS.register_module()
class StripeWise(PruneAlgorithm):
    """Learn the shapes of filters: which of their stripes, vectors along the input channels, are needed.

    Source: Meng et al., "Pruning Filter in Filter", NeurIPS 2020, arXiv 2009.14410. The filters of a convolution are
    multiplied by a Filter Skeleton (:class:`mmprune_ext.ops.SkeletonConv2d`), trained with the weights by

        task loss + sr * sum |skeleton|

    After each step the numbers up to ``threshold`` become 0 for good. Filters without a stripe leave as channels where
    nothing else makes these, residual blocks without a branch become their shortcut, and what is left of the others
    is computed by the faster of two ways (:class:`mmprune_ext.ops.StripeConv2d`)::

        model = dict(
            type='mmprune_ext.StripeWise',
            architecture=dict(type='ImageClassifier', ...),
            sr=1e-5, threshold=0.01)

    Args:
        architecture: The model to prune, or its config.
        mutator: A ``StripeMutator``, or its config; one with its defaults otherwise.
        sr: Sparsity rate, the weight of the L1 norm, at least 0. ``mmprune_ext.StripeHook`` adds its subgradient.
        threshold: The largest absolute value at which a stripe dies, at least 0 and below 1, where all start.
        freeze_weights: Whether the skeletons alone are trained.
        bn_scale: What the scales of batch norm start from, of a network that is trained from scratch; ``None`` for
            what the architecture starts them from.
        forms: How the exported layers that have lost stripes compute: ``'dense'`` (with zeros), ``'stripes'``, or a
            dict of these by patterns of paths. What it leaves open is measured at export.
        checkpoint: Weights of the dense model to start from. Without them training starts from the architecture's
            own initialisation, or the checkpoint that its ``init_cfg`` names.
        units: A channel-unit file with choices, also of a model with another head: the model is made compact by it at
            once, and what is trained is the compact model. As a dict, or as the path of a run's checkpoint, it is
            the structure of a run that goes on: ``checkpoint`` is not read then, the weights are the run's own.
        init_cfg: Replaces the architecture's own.
        data_preprocessor: Handed in by the Runner from the config's top level.

    Raises:
        ConfigError: For another mutator, or a setting that cannot work.
        PruningError: For a model without a convolution that can lose stripes.
    """

    mutator_type = 'mmprune_ext.StripeMutator'
    required_hooks = (*PruneAlgorithm.required_hooks, 'mmprune_ext.StripeHook')
    paramwise = {'skeleton': {}}  # by the rules for the weights of their layers, as published
    sr: float
    threshold: float
    bn_scale: float | None
    forms: Mapping[str, str]
    scheduled: bool
    _has_weights: bool
    _frozen: list[str]

    def __init__(self, architecture: nn.Module | Mapping[str, Any],
                 mutator: ChannelMutator | Mapping[str, Any] | None = None,
                 sr: float = 1e-5,
                 threshold: float = 0.01,
                 freeze_weights: bool = False,
                 bn_scale: float | None = 0.5,
                 forms: str | Mapping[str, str] | None = None,
                 checkpoint: str | None = None,
                 units: Units | None = None,
                 init_cfg: Mapping[str, Any] | None = None, *,
                 data_preprocessor: Mapping[str, Any] | None = None) -> None:
        _check_rates(sr, threshold, freeze_weights, bn_scale)
        self.forms = _forms(forms)
        super().__init__(architecture, mutator, init_cfg)
        if not isinstance(self.mutator, StripeMutator):
            raise ConfigError(f'StripeWise: mutator should be a StripeMutator, but got {type(self.mutator).__name__}')
        self.sr, self.threshold, self.bn_scale = float(sr), float(threshold), bn_scale
        self.scheduled = False  # whether something lets stripes die while this model is trained
        self._has_weights = False
        self._frozen = []  # names of the parameters that are not trained only because of freeze_weights
        known = None if units is None else load_units(units)
        if known is not None and known.has_choices:
            self._take_units(units, checkpoint)
            self._has_weights = True
            slim(self, self.units)
        else:
            resumed = known is not None and not is_unit_file(units)
            self._has_weights = resumed or self._load_if_any(checkpoint)
            self.mutator.prepare(self, known)
            self._check_forms()
            self.mutator.skeletonize(self)
            if freeze_weights:
                self._freeze_weights()
        forget_pretrained(self)
        self._log()

    def _freeze_weights(self) -> None:
        skeletons = {id(layer.skeleton) for _, layer in self.mutator.skeletons(self)}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and id(parameter) not in skeletons:
                parameter.requires_grad_(False)
                self._frozen.append(name)

    def _check_forms(self) -> None:
        for pattern in self.forms:
            if not fnmatch.filter(self.mutator.layers, pattern):
                raise ConfigError(f'StripeWise: forms: no convolution with a skeleton matches "{pattern}"; there are '
                                  f'{", ".join(self.mutator.layers[:3])} ...')

    def _log(self) -> None:
        if not self.is_learning:
            text = f'{len(self.units.stripes)} convolutions have lost stripes'
        else:
            stripes = sum(layer.skeleton.numel() for _, layer in self.mutator.skeletons(self))
            text = f'{stripes} stripes in {len(self.mutator.layers)} convolutions'
            reasons: dict[str, list[str]] = {}
            for path, why in self.mutator.left_alone.items():
                reasons.setdefault(why, []).append(path)
            text += ''.join(f'\n  {len(paths)} left alone (first: {paths[0]}): {why}' for why, paths in reasons.items())
        print_log(f'StripeWise: {text}', logger='current')

    @property
    def is_learning(self) -> bool:
        """Whether shapes are still learned: convolutions have skeletons, and nothing is gone."""
        return 'mutator' in vars(self) and self.mutator.has_skeletons

    def init_weights(self) -> None:
        """Initialise as the architecture does, batch norm at ``bn_scale``; weights that were loaded stay."""
        if self._has_weights:
            return
        fresh = hasattr(super(), 'init_weights') and not getattr(self, 'is_init', False)
        if fresh:
            super().init_weights()
        if fresh and self.bn_scale is not None:
            for module in self.modules():
                if isinstance(module, _BatchNorm) and module.affine:
                    nn.init.constant_(module.weight, self.bn_scale)

    # ------------------------------------------------------------ training

    def settle(self) -> None:
        """Silence what the dead stripes leave without use (:meth:`mmprune_ext.mutators.StripeMutator.settle`)."""
        if self.is_learning:
            self.mutator.settle(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments and results are its own.

        Raises:
            ConfigError: In training, if nothing lets stripes die.
        """
        if self.is_learning:
            mode = kwargs.get('mode', args[2] if len(args) > 2 else None)
            if self.training and mode == 'loss' and not self.scheduled:
                raise ConfigError("StripeWise: nothing lets stripes die; add dict(type='mmprune_ext.StripeHook') to "
                                  'custom_hooks (tools/train.py does it by itself)')
            if not self.training:
                self.mutator.settle(self)
        return super().__call__(*args, **kwargs)

    def stripe_statistics(self) -> dict[str, float]:
        """Return the share that is left of the ``stripes``, and of the ``filters`` of convolutions with skeletons."""
        alive = [layer.alive() for _, layer in self.mutator.skeletons(self)]
        filters = torch.cat([marks.flatten(1).any(1) for marks in alive])
        stripes = sum(int(marks.sum()) for marks in alive) / sum(marks.numel() for marks in alive)
        return {'stripes': stripes, 'filters': float(filters.float().mean())}

    # ------------------------------------------------------------ export

    @property
    def exported_units(self) -> UnitSet:
        """The channel units with what stays: channels, stripes of filters, shortcuts of blocks."""
        if not self.is_learning:
            return self.units
        units = copy.deepcopy(self.mutator).choose(self)
        dead = [path for path, layer in units.stripes.items() if not layer.keep.any()]
        units.shortcuts = find_shortcuts(self._baked(), dead, self.mutator.demo_inputs)
        for path in list(units.stripes):
            if any(shortcut.leaves_out(block, path) for block, shortcut in units.shortcuts.items()):
                del units.stripes[path]
            else:
                units.stripes[path] = units.stripes[path].in_form(self._form_of(path))
        return units

    def _form_of(self, path: str) -> str | None:
        return next((form for pattern, form in self.forms.items() if fnmatch.fnmatch(path, pattern)), None)

    def _baked(self) -> nn.Module:
        """Return a copy in the user's class whose convolutions are plain, zeros in the place of dead stripes."""
        model = take_out(copy.deepcopy(self))
        for layer in [module for module in model.modules() if isinstance(module, SkeletonConv2d)]:
            turn_into(layer, layer.plain_conv())
        for name in self._frozen:
            model.get_parameter(name).requires_grad_(True)
        return model

    def export_model(self) -> nn.Module:
        """Return the compact model; while shapes are learned, of those that there are now."""
        if not self.is_learning:
            return super().export_model()
        return slim(self._baked(), self.exported_units)


def _check_rates(sr: Any, threshold: Any, freeze_weights: bool, bn_scale: Any) -> None:
    for name, value, most in (('sr', sr, math.inf), ('threshold', threshold, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < most:
            limit = '' if most == math.inf else ' and below 1, where all stripes start'
            raise ConfigError(f'StripeWise: {name} should be a number of at least 0{limit}, but got {value!r}')
    if bn_scale is not None and (isinstance(bn_scale, bool) or not isinstance(bn_scale, (int, float)) or bn_scale <= 0):
        raise ConfigError(f'StripeWise: bn_scale should be a positive number or None, but got {bn_scale!r}')
    if sr == 0 and freeze_weights:
        raise ConfigError('StripeWise: with freeze_weights the skeletons alone are trained, and with sr=0 nothing '
                          'draws them to zero; set sr to a positive number (1e-5 as published)')
    if sr == 0 and threshold == 0:
        raise ConfigError('StripeWise: with sr=0 and threshold=0 no stripe would ever die; set both as published '
                          '(sr=1e-5, threshold=0.01)')


def _forms(forms: Any) -> dict[str, str]:
    given = {} if forms is None else {'*': forms} if isinstance(forms, str) else forms
    if not isinstance(given, Mapping) or any(form not in FORMS for form in given.values()):
        raise ConfigError(f'StripeWise: forms should be one of {", ".join(FORMS)}, or a dict of these by patterns of '
                          f'paths, but got {forms!r}')
    return dict(given)
