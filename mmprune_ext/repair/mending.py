"""Mending a pruned model without training: what can be done is tried, and what comes nearest to the dense is kept."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import Runner, set_random_seed
from torch import nn

from mmprune_ext.analysis.report import Mended
from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators.calibration import Dataloader, evaluating
from mmprune_ext.repair.batch_norm import reestimate_batch_norm
from mmprune_ext.repair.least_squares import check_integer, check_settings, repair_least_squares
from mmprune_ext.repair.states import distances, set_state, state_of
from mmprune_ext.units import UnitSet

# Images that the states are compared on: so many, and at most this share of the data.
COMPARED, COMPARED_SHARE = 256, 0.2
PRUNED, STATISTICS, REPAIRED = 'pruned', 'new statistics', 'repaired'


@dataclass(frozen=True)
class Mending:
    """What a pruned model is mended by.

    Attributes:
        num_images: Training images that the weights are solved for on, of all processes together; fewer where there
            are not so many.
        bn_batches: Training batches of each process that new batch statistics are taken from; 0 for none.
        dataloader: A dataloader, or its config; as a rule the config's own ``train_dataloader``, of classifiers with
            the pipeline of the validation images (:func:`mmprune_ext.settings.as_tested.training_images`).
        seed: Seed of the order of the data and of random augmentation.
        ridge: Weight of staying near the weights that pruning left (:func:`repair_least_squares`).
        positions: Share of the positions of a map that are looked at.
        required: Whether an error ends the pruning; if not, it is told, and new batch statistics are all there is.
    """

    num_images: int = 1024
    bn_batches: int = 20
    dataloader: Dataloader | None = None
    seed: int = 0
    ridge: float = 1e-3
    positions: float = 1.0
    required: bool = True

    def __post_init__(self) -> None:
        check_settings(self.num_images, self.ridge, self.positions)
        check_integer('bn_batches', self.bn_batches, 0)
        check_integer('seed', self.seed, 0)
        if self.dataloader is not None and (isinstance(self.dataloader, str) or not isinstance(
                self.dataloader, Iterable)):
            raise ConfigError(f'repair: dataloader should be a dataloader or its config, but got '
                              f'{self.dataloader!r:.80}')

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | Mending) -> Mending:
        """Read ``dict(num_images=1024, dataloader=...)``.

        Raises:
            ConfigError: For an unknown key or a value that cannot work.
        """
        if isinstance(config, Mending):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(f'repair: expected settings such as dict(num_images=1024), but got {config!r:.80}')
        known = [field.name for field in fields(cls)]
        for key in set(config) - set(known):
            raise ConfigError(f'repair: unknown key "{key}"; known are {", ".join(known)}')
        return cls(**config)

    def build_dataloader(self) -> Iterable[Any]:
        """Return the dataloader.

        Raises:
            ConfigError: If there is none.
        """
        if self.dataloader is None:
            raise ConfigError('repair needs data: set repair.dataloader (a config inherits its own as '
                              '"{{_base_.train_dataloader}}")')
        if not isinstance(self.dataloader, Mapping):
            return self.dataloader
        # Workers that persist would go on drawing.
        loader = {**copy.deepcopy(dict(self.dataloader)), 'persistent_workers': False}
        return Runner.build_dataloader(loader, seed=self.seed)


def mend(model: nn.Module, dense: nn.Module, units: UnitSet, mending: Mending, quiet: bool = False,
         given: str = PRUNED) -> Mended | None:
    """Repair a pruned model by least squares, and keep the state of its weights that is nearest to the dense model.

    The states are: as it is, with new batch statistics, repaired, repaired with new batch statistics. Statistics that
    are taken anew after the repair often make things worse, for the repaired outputs fit the dense statistics; what is
    nearer (:func:`mmprune_ext.repair.states.distances`) is found on images that the repair has not seen, where the data
    have more than one batch. Of two that are as near it is the former.

    Args:
        model: The slimmed model, changed in place.
        dense: The model that it was slimmed from, with its weights.
        units: The channel units of the dense model, with the choices that slimmed the other.
        mending: By what.
        quiet: Neither show progress nor log, as one of many steps of something else.
        given: What the first state is called.

    Returns:
        What was kept, and why; ``None`` if it failed and is not required: the model has new batch statistics then.

    Raises:
        ConfigError: If there is no data.
        PruningError: If the two models cannot be compared.
    """
    if mending.required:
        return _mend(model, dense, units, mending, quiet, given)
    before = state_of(model)
    try:
        return _mend(model, dense, units, mending, quiet, given)
    except Exception as error:  # of whatever kind: pruning does not depend on it
        text = ' '.join(str(error).split())[:200]
        print_log(f'repair: failed ({type(error).__name__}: {text}); the batch statistics are taken anew instead',
                  logger='current', level=logging.WARNING)
        set_state(model, before)
        reestimate_batch_norm(model, mending.build_dataloader(), mending.bn_batches, quiet=quiet)
        return None


def _mend(model: nn.Module, dense: nn.Module, units: UnitSet, mending: Mending, quiet: bool, given: str) -> Mended:
    began = time.monotonic()
    loader = mending.build_dataloader()
    first = _compared(loader)

    def take_statistics() -> bool:
        set_random_seed(mending.seed)  # every state draws what the others draw
        return reestimate_batch_norm(model, loader, mending.bn_batches, quiet=True) > 0

    with preserved_random_state(), evaluating(dense, get_device()), evaluating(model, get_device()):
        states = {given: state_of(model)}
        if take_statistics():
            states[STATISTICS] = state_of(model)
            set_state(model, states[given])
        set_random_seed(mending.seed)
        rest = loader if first.shared else _Behind(loader, first.batches)
        report = repair_least_squares(model, dense, units, rest, mending.num_images, ridge=mending.ridge,
                                      positions=mending.positions, seed=mending.seed, quiet=quiet)
        states[REPAIRED] = state_of(model)
        if take_statistics():
            states[f'{REPAIRED}, {STATISTICS}'] = state_of(model)
        set_random_seed(mending.seed)
        found = distances(model, states, dense, islice(loader, first.batches))
        kept = min(found, key=found.__getitem__)
        set_state(model, states[kept])
    errors = {path: (error.before, error.after) for path, error in report.layers.items()}
    mended = Mended(kept, found, first.images * get_world_size(), not first.shared, report.num_images,
                    time.monotonic() - began, errors, dict(report.skipped))
    if not quiet:
        print_log('repair: ' + '\n'.join(mended.lines()[:2]), logger='current')
    return mended


@dataclass(frozen=True)
class _Compared:
    """The batches at the beginning of the data that states are compared on.

    Attributes:
        batches: How many.
        images: About how many images these are.
        shared: Whether they serve the repair too, for there are no others.
    """

    batches: int
    images: int
    shared: bool


def _compared(loader: Iterable[Any]) -> _Compared:
    """Return which batches states are compared on.

    Raises:
        ConfigError: If there are no data.
    """
    size = (getattr(loader, 'batch_size', None)
            or getattr(getattr(loader, 'batch_sampler', None), 'batch_size', None) or 1)
    total = len(loader) if hasattr(loader, '__len__') else None
    if total == 0:
        raise ConfigError('repair: the dataloader has no batches; check its dataset and drop_last')
    batches = max(math.ceil(COMPARED / size), 1)
    if total is not None:
        batches = max(min(batches, int(total * COMPARED_SHARE)), 1)
    images = batches * size
    if hasattr(loader, 'dataset'):
        images = min(images, len(loader.dataset))
    return _Compared(batches, images, total == 1)


class _Behind:
    """The data without the first batches."""

    def __init__(self, loader: Iterable[Any], number: int) -> None:
        self.loader, self.number = loader, number

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.loader), self.number, None)
