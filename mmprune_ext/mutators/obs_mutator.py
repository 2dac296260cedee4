"""Channels chosen by what the layers that read them can make up for: structured optimal brain surgeon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.mutators.base import ChannelMutator
from mmprune_ext.mutators.calibration import Calibration
from mmprune_ext.mutators.input_moments import input_moments
from mmprune_ext.registry import MODELS
from mmprune_ext.scores import brain_surgeon
from mmprune_ext.scores.brain_surgeon import Reader
from mmprune_ext.scores.least_squares import Moments
from mmprune_ext.units import ChannelUnit
from mmprune_ext.units.demo_inputs import DemoInputs
from mmprune_ext.units.layer_matrix import LayerMatrix
from mmprune_ext.units.unit import Member


@MODELS.register_module()
class OBSMutator(ChannelMutator):
    """Score a channel by the error that is left where all layers that read it make up for it.

    The score is the error of all readers together, as a share of the squares of their outputs, when the channel goes
    after all cheaper ones (:func:`mmprune_ext.scores.brain_surgeon`). It belongs to weights that follow: repair the
    pruned network by least squares.

    Args:
        calibration: The data to score on: ``dict(num_batches=5, dataloader=...)``
            (:class:`mmprune_ext.mutators.calibration.Calibration`).
        ridge: What holds weights to what they were, as a share of the mean of the Gram matrix' diagonal.
        positions: Share of the positions of each layer's output that is looked at, drawn.
        scope, demo_inputs, exclude, divisor, min_channels, round_up, whole_heads: As in :class:`ChannelMutator`.
    """

    sparsity_layouts = ('units', 'chip')

    def __init__(self, calibration: Mapping[str, Any] | None = None, ridge: float = 1e-3, positions: float = 0.25,
                 scope: str | Sequence[str] = 'backbone', demo_inputs: DemoInputs = None,
                 exclude: str | Sequence[str] = (), divisor: int = 1, min_channels: int = 1,
                 round_up: bool = False, whole_heads: bool = False) -> None:
        super().__init__(scope, demo_inputs, exclude, divisor, min_channels, round_up, whole_heads)
        self.calibration = Calibration.from_config(calibration)
        if not ridge > 0:
            raise ConfigError(f'OBSMutator: ridge should be above 0, but got {ridge!r}')
        if not 0 < positions <= 1:
            raise ConfigError(f'OBSMutator: positions is a share, above 0 and at most 1, but got {positions!r}')
        self.ridge = ridge
        self.positions = positions

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the scores of all prunable units, from one pass over the data."""
        layers = {member.module: None for unit in self.units.prunable.values() for member in unit.consumers
                  if member.dim is None and LayerMatrix.fits(model.get_submodule(member.module))}
        moments = input_moments(model, layers, self.calibration, self.positions)
        found = {}
        for name, unit in self.units.prunable.items():
            readers = [reader for member in unit.consumers if member.module in moments
                       for reader in readers_of(model, unit, member, moments[member.module])]
            if not readers:
                raise PruningError(f'unit "{name}": no convolution or linear layer that the calibration reached reads '
                                   f'it; leave the unit whole (mutator exclude=["{name}"])')
            try:
                found[name] = brain_surgeon(readers, self.ridge)
            except PruningError as error:  # raised on bare tensors, which have no name
                raise PruningError(f'unit "{name}": {error}') from error
        return found

    def score_settings(self) -> dict[str, Any]:
        """Return how much data the scores are of, and how they were computed."""
        return {'num_batches': self.calibration.num_batches, 'seed': self.calibration.seed, 'ridge': self.ridge,
                'positions': self.positions}


def readers_of(model: nn.Module, unit: ChannelUnit, member: Member, moments: Moments) -> Iterator[Reader]:
    """Yield a layer that reads a unit's channels as :func:`brain_surgeon` takes it: each of its groups by itself.

    The means are taken off: a bias or the statistics of a normalisation make up for them.
    """
    matrix = LayerMatrix(model.get_submodule(member.module))
    whole, weight = moments.gram(), matrix.weight()
    inputs = matrix.inputs
    means = whole[:, -1, :inputs]
    count = whole[:, -1, -1].clamp(min=1)
    taps = 1
    for size in matrix.kernel:
        taps *= size
    width = inputs // taps
    places = torch.from_numpy(member.positions(unit.num_channels)).sort(1).values
    for group in range(matrix.groups):
        own = (places // width == group).sum(1)
        if not bool((own == own[0]).all()) or not own[0]:
            continue  # only some of the channels are read here
        channels = places[places // width == group].reshape(len(places), -1) % width
        columns = (channels[..., None] + width * torch.arange(taps)).flatten(1)
        gram = whole[group, :inputs, :inputs] - torch.outer(means[group], means[group]) / count[group]
        yield Reader(gram.cpu(), weight[group].cpu(), columns)
