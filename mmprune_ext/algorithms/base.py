"""The algorithm: the registered model around the user's architecture that the Runner trains."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmprune_ext.compact.checkpoint import load_weights, units_from_state
from mmprune_ext.compact.compact_model import Units, build_architecture, forget_pretrained, load_units
from mmprune_ext.errors import CheckpointError, ConfigError
from mmprune_ext.mutators import ChannelMutator
from mmprune_ext.mutators.score_file import ScoreFile
from mmprune_ext.mutators.target import RatioTarget
from mmprune_ext.registry import MODELS
from mmprune_ext.units import UnitSet, slim


class PruneAlgorithm(BaseModel):
    """Base of all algorithms.

    It passes every call to the architecture, so that losses, metrics, hooks and data stay the
    user's, and keeps the structure of the pruned model in the checkpoint.

    Args:
        architecture: The model to prune, or its config.
        mutator: The method's mutator, or its config.
        data_preprocessor: Handed in by the Runner from the config's top level.
        init_cfg: As in every OpenMMLab model.

    Attributes:
        required_hooks: Registered names of the hooks that a run needs; the tools add them to its
            config.
    """

    required_hooks: tuple[str, ...] = ('mmprune_ext.PruningHook', 'mmprune_ext.EpochSeedHook')

    def __init__(self, architecture: nn.Module | Mapping[str, Any],
                 mutator: ChannelMutator | Mapping[str, Any],
                 data_preprocessor: Mapping[str, Any] | None = None,
                 init_cfg: Mapping[str, Any] | None = None) -> None:
        model = build_architecture(architecture, data_preprocessor)
        super().__init__(getattr(model, 'data_preprocessor', None), init_cfg)
        self.architecture = model
        self.mutator = MODELS.build(mutator) if isinstance(mutator, Mapping) else mutator
        if not isinstance(self.mutator, ChannelMutator):
            raise ConfigError(f'mutator should be a channel mutator such as L1Mutator, but got '
                              f'{type(self.mutator).__name__}')

    @property
    def units(self) -> UnitSet:
        """The channel units of the dense architecture with the present choices."""
        return self.mutator.units

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Run the architecture; arguments and results are its own."""
        return self.architecture(inputs, data_samples, mode=mode)

    @abstractmethod
    def export_model(self) -> nn.Module:
        """Return the compact model: plain layers, no trace of the algorithm."""

    # The structure travels in the state dict as a tensor of bytes, which every part of mmengine
    # (EMA, checkpoint hooks, device transfer) passes on as it is.

    def get_extra_state(self) -> Tensor:
        """Return the units as the bytes of their JSON file, uint8."""
        text = json.dumps(self.units.to_json(), separators=(',', ':'))
        return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())

    def set_extra_state(self, state: Tensor) -> None:
        """Check that a checkpoint's structure is this model's.

        Raises:
            CheckpointError: If other channels were pruned there.
        """
        saved = units_from_state(state)
        for name, unit in self.units.items():
            if name not in saved or saved[name].indices != unit.indices:
                raise CheckpointError(
                    f'the checkpoint was written by a run that pruned other channels (first: unit '
                    f'"{name}"); resume with tools/train.py --resume, which takes the structure '
                    'from the checkpoint, or set model.units to the units.json of that run')


class OneShotAlgorithm(PruneAlgorithm):
    """A method that makes a pretrained model compact at once, while it is being built.

    What is trained afterwards is the compact model, at the compact model's speed; DDP, the
    optimizer and EMA see nothing else.

    Args:
        architecture: The model to prune, or its config.
        mutator: The method's mutator, or its config; the method's own with its defaults otherwise.
        target_pruning_ratio: What to REMOVE from each unit: a ratio, a dict, a JSON file or a
            sparsity string (:func:`mmprune_ext.mutators.target.keeps_from_ratios`).
        budget: Or what REMAINS of the whole: ``dict(flops=0.5)``
            (:class:`mmprune_ext.mutators.Budget`).
        scores: Scores that ``tools/score.py`` wrote, or the path of its file; otherwise they are
            computed.
        checkpoint: Weights of the dense model; without it the architecture's own ``init_cfg``
            initialises.
        units: A channel-unit file with choices. The structure is then taken from it as it is:
            nothing is traced or scored, and ``checkpoint`` is not read (a run that is resumed
            gets its weights from its own checkpoint).
        data_preprocessor: Handed in by the Runner from the config's top level.
        init_cfg: As in every OpenMMLab model.

    Attributes:
        short_name: The method's name on the command line (``tools/prune.py --algorithm``).
        mutator_type: The registered name of its mutator.
        needs_data: Whether its mutator scores on data, and takes ``calibration``.
    """

    short_name = ''
    mutator_type = ''
    needs_data = False

    def __init__(self, architecture: nn.Module | Mapping[str, Any],
                 mutator: ChannelMutator | Mapping[str, Any] | None = None,
                 target_pruning_ratio: RatioTarget | None = None,
                 budget: Mapping[str, Any] | None = None,
                 scores: ScoreFile | str | None = None,
                 checkpoint: str | None = None,
                 units: Units | None = None,
                 data_preprocessor: Mapping[str, Any] | None = None,
                 init_cfg: Mapping[str, Any] | None = None) -> None:
        mutator = {'type': self.mutator_type} if mutator is None else mutator
        super().__init__(architecture, mutator, data_preprocessor, init_cfg)
        # Read before anything that takes long.
        stored = ScoreFile.load(scores) if units is None and isinstance(scores, str) else scores
        model = self.architecture
        if units is not None:
            self.mutator.prepare(model, load_units(units))
        else:
            if checkpoint is not None:
                load_weights(model, checkpoint)
            elif hasattr(model, 'init_weights') and not getattr(model, 'is_init', False):
                model.init_weights()
            self.mutator.prepare(model)
            known = None if stored is None else stored.checked(model, self.units, self.short_name)
            self.mutator.choose(model, target_pruning_ratio, budget, known)
        slim(model, self.units)
        forget_pretrained(model)
        kept = sum(unit.keep for unit in self.units.prunable.values())
        total = sum(unit.num_channels for unit in self.units.prunable.values())
        print_log(f'{type(self).__name__}: kept {kept} of {total} channels in '
                  f'{len(self.units.prunable)} prunable units', logger='current')

    def init_weights(self) -> None:
        """Leave the weights alone: they were loaded before pruning."""

    def export_model(self) -> nn.Module:
        """Return the architecture, which has been compact since it was built."""
        return self.architecture
