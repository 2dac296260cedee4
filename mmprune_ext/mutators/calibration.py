"""Scores from feature maps: one pass of a model over some batches of its training data."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, broadcast, get_rank, get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner, set_random_seed
from rich.progress import track
from torch import Tensor, nn

from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import CheckpointError, ConfigError, PruningError
from mmprune_ext.mutators.partial_sums import PartialSums, calibration_key
from mmprune_ext.scores import channel_independence
from mmprune_ext.units import UnitSet
from mmprune_ext.units.demo_inputs import is_openmmlab, set_training
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.task_samples import library_of
from mmprune_ext.units.tracing.feature_maps import FeatureMaps

Dataloader = Mapping[str, Any] | Iterable[Any]
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Calibration:
    """What data a model is calibrated on.

    Attributes:
        num_batches: Batches to average over, of the dataloader's batch size; the processes of a
            distributed run share them.
        dataloader: A dataloader, or its config; the config's own ``train_dataloader``, as a rule.
        seed: Seed of the order of the data and of random augmentation.
        partial: File to write the sums so far to; where there is one, it goes on from that.
        save_every: After how many batches that file is written.
    """

    num_batches: int = 5
    dataloader: Dataloader | None = None
    seed: int = 0
    partial: str | None = None
    save_every: int = 10

    def __post_init__(self) -> None:
        for key, lowest in (('num_batches', 1), ('seed', 0), ('save_every', 1)):
            value = getattr(self, key)
            if type(value) is not int or value < lowest:
                raise ConfigError(f'calibration: {key} should be an integer of at least {lowest}, '
                                  f'but got {value!r}')
        if self.dataloader is not None and (isinstance(self.dataloader, str) or not isinstance(
                self.dataloader, Iterable)):
            raise ConfigError('calibration: dataloader should be a dataloader or its config, but got '
                              f'{self.dataloader!r:.80}')

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Calibration:
        """Read ``dict(num_batches=5, dataloader=...)``.

        Raises:
            ConfigError: For an unknown key or a value that cannot work.
        """
        known = [field.name for field in fields(cls)]
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError('calibration: expected settings such as dict(num_batches=5), but got '
                              f'{config!r:.80}')
        for key in set(config or {}) - set(known):
            raise ConfigError(f'calibration: unknown key "{key}"; known are {", ".join(known)}')
        return cls(**(config or {}))

    def build_dataloader(self) -> Iterable[Any]:
        """Return the dataloader.

        Raises:
            ConfigError: If there is none, or it has fewer batches.
        """
        if self.dataloader is None:
            raise ConfigError('calibration needs data: set calibration.dataloader (a config inherits its own as '
                              '"{{_base_.train_dataloader}}"), or give scores that tools/score.py wrote')
        loader = self.dataloader
        if isinstance(loader, Mapping):
            loader = Runner.build_dataloader(copy.deepcopy(dict(loader)), seed=self.seed)
        batches = len(loader) * get_world_size() if hasattr(loader, '__len__') else self.num_batches
        if batches < self.num_batches:
            raise ConfigError(f'calibration: num_batches is {self.num_batches}, but the dataloader has only '
                              f'{batches} batches; lower num_batches (--calib-batches) or the batch size')
        return loader

    def partial_sums(self, sums: RunningSums) -> PartialSums | None:
        """Return this process's file of sums so far, ``None`` if none is wanted."""
        if self.partial is None:
            return None
        suffix = f'.rank{get_rank()}' if get_world_size() > 1 else ''
        key = calibration_key(sums.model, type(sums).__name__,
                              self.dataloader if isinstance(self.dataloader, Mapping) else '',
                              self.seed, get_world_size(), list(sums.units.prunable))
        return PartialSums(Path(f'{self.partial}{suffix}'), self.save_every, key)


class RunningSums:
    """Sums over this process's share of some batches, which another process or a later run may add to.

    Args:
        model: The dense model; it is run, not changed.
        units: Its units. Only those that are prunable are scored.
        widths: By name of a sum, the number of its channels ``C``.

    Attributes:
        sums: By name ``(C,)``, float64, summed over samples.
        samples: By name, of how many samples each channel's sum is ``(C,)``, float64.
        batches: Batches seen.
    """

    def __init__(self, model: nn.Module, units: UnitSet, widths: Mapping[str, int]) -> None:
        self.model = model
        self.units = units
        self.batches = 0
        self.sums = {name: torch.zeros(width, dtype=torch.float64) for name, width in widths.items()}
        self.samples = {name: torch.zeros_like(total) for name, total in self.sums.items()}

    def run(self, loader: Iterable[Any], num_batches: int,
            after_batch: Callable[[RunningSums], None] | None = None) -> None:
        """Run this process's share of the batches; those seen before are passed over.

        Args:
            loader: The data, in the same order in every call.
            num_batches: Batches of all processes together.
            after_batch: Called after each batch.

        Raises:
            CheckpointError: If more batches were seen before than are wanted.
            ConfigError: If the data end before.
            PruningError: As of :meth:`add`.
        """
        world = get_world_size()
        share = num_batches // world + (get_rank() < num_batches % world)
        if self.batches > share:
            raise CheckpointError(f'calibration: the sums so far are of {self.batches} batches, but only {share} '
                                  'are wanted; ask for as many at least, or start afresh')
        batches = islice(loader, share)
        if is_main_process():
            batches = track(batches, 'calibration', total=share, transient=True)
        with evaluating(self.model, get_device()):
            for number, batch in enumerate(batches):
                if number < self.batches:
                    continue
                self.add(batch)
                self.batches += 1
                if after_batch is not None:
                    after_batch(self)
        if self.batches < share:
            raise ConfigError(f'calibration: the dataloader ended after {self.batches} of {share} batches; '
                              'lower num_batches')

    def add(self, batch: Any) -> None:
        """Run the model, in eval mode and without autograd, on a batch as its dataloader gives it, and add to the sums.

        Raises:
            PruningError: If what is summed up is not finite.
        """
        raise NotImplementedError

    def preprocessed(self, batch: Any) -> Any:
        """Return a batch as the model takes it."""
        preprocess = getattr(self.model, 'data_preprocessor', None)
        return batch if preprocess is None else preprocess(batch, True)

    def scores(self) -> dict[str, Tensor]:
        """Return each unit's scores ``(num_channels,)``, the same in all processes."""
        raise NotImplementedError

    def totals(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return :attr:`sums` and :attr:`samples` of all processes together."""
        flat = torch.stack([torch.cat(list(self.sums.values())), torch.cat(list(self.samples.values()))])
        if get_world_size() > 1:
            flat = flat.to(get_device())
            all_reduce(flat)
            broadcast(flat)  # to the last bit: all processes must choose the same channels
        sizes = [len(part) for part in self.sums.values()]
        sums, samples = (dict(zip(self.sums, row.split(sizes))) for row in flat.cpu())
        return sums, samples

    def state_dict(self) -> dict[str, Any]:
        """Return what an interrupted calibration goes on from."""
        return {'sums': self.sums, 'samples': self.samples, 'batches': self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.sums, self.samples = dict(state['sums']), dict(state['samples'])
        self.batches = int(state['batches'])


class Calibrator(RunningSums):
    """Sum up the scores of every producer's channels over batches, without keeping a feature map.

    The sums are by producer, over images.

    Args:
        model: The dense model; it is run, not changed.
        units: Its units. Only those that are prunable are scored.
        score: Gives the scores ``(N, C)``, larger is more important, of maps ``(N, C, S)``.
    """

    def __init__(self, model: nn.Module, units: UnitSet,
                 score: Score = channel_independence) -> None:
        widths: dict[str, int] = {}
        for unit in units.prunable.values():
            for member in unit.producers:
                # A shortcut without weights passes on the channels of other layers.
                layer = model.get_submodule(member.module)
                if getattr(layer, 'weight', None) is not None:
                    # All of them, though only some may be in prunable units.
                    widths[member.module] = rule_for(layer).widths(layer)['producer']
        super().__init__(model, units, widths)
        self.score = score
        self._forward = feature_pass(model, self.sums)

    def add(self, batch: Any) -> None:
        """Add the scores of all feature maps of a batch.

        Raises:
            PruningError: If a feature map holds NaN or infinity.
        """
        data = self.preprocessed(batch)
        FeatureMaps(self.model, list(self.sums), self._add_map).run(lambda _: self._forward(data))

    def _add_map(self, values: Tensor, channels: Mapping[str, np.ndarray]) -> None:
        try:
            total = self.score(values).sum(0).cpu()
        except PruningError as error:  # raised on a bare tensor, which has no name
            path = next(iter(channels))
            unit = next(unit.name for unit in self.units.prunable.values()
                        if any(member.module == path for member in unit.producers))
            raise PruningError(f'unit "{unit}", layer "{path}", calibration batch '
                               f'{self.batches + 1}: {error}') from error
        for path, places in channels.items():
            self.sums[path][places] += total
            self.samples[path][places] += len(values)

    def scores(self) -> dict[str, Tensor]:
        """Return each unit's scores ``(num_channels,)``: the mean over images, then over producers.

        A channel that takes several places in a producer has the mean of theirs. In a distributed run
        the sums of all processes count, and all get the same result.

        Raises:
            PruningError: If no feature map was seen of a unit's channel.
        """
        sums, images = self.totals()
        means = {path: total / images[path] for path, total in sums.items()}  # NaN where no map was seen
        found = {}
        for name, unit in self.units.prunable.items():
            parts = [means[member.module][torch.from_numpy(member.positions(unit.num_channels))].nanmean(1)
                     for member in unit.producers if member.module in means]
            seen = [part for part in parts if bool(part.isfinite().all())]
            if not seen:
                raise PruningError(f'unit "{name}": the calibration saw no feature map of '
                                   f'"{unit.producers[0].module}"; leave the unit whole (mutator exclude=["{name}"])')
            found[name] = torch.stack(seen).mean(0)
        return found


def feature_pass(model: nn.Module, layers: Iterable[str]) -> Callable[[Any], Any]:
    """Return a function that runs preprocessed data through the layers whose maps are wanted.

    For layers of backbone and neck that is ``extract_feat``; for others, the whole model.
    """
    if not is_openmmlab(model):
        return model
    inside = all(path.split('.')[0] in ('backbone', 'neck') for path in layers)
    if inside and hasattr(model, 'extract_feat'):
        arguments = list(inspect.signature(model.extract_feat).parameters.values())
        if all(argument.default is not argument.empty for argument in arguments[1:]):
            return lambda data: model.extract_feat(data['inputs'])
    # A cascade of segmentation heads has no forward without post-processing.
    cascade = library_of(model) == 'mmseg' and hasattr(model, 'num_stages')
    return lambda data: model(**data, mode='predict' if cascade else 'tensor')


@contextlib.contextmanager
def evaluating(model: nn.Module, device: str) -> Iterator[None]:
    """Put a model into eval mode on a device, without changes to whole batches, for a block."""
    flags = {module: module.training for module in model.modules()}
    home = next((value.device for value in model.parameters()), torch.device('cpu'))
    preprocessor = getattr(model, 'data_preprocessor', None)
    # Mixed images would be calibrated on instead of images, and each process would draw its own
    # image size.
    augments = getattr(preprocessor, 'batch_augments', None)
    with torch.no_grad():
        try:
            if augments is not None:
                preprocessor.batch_augments = None
            model.to(device)
            set_training(model, False)
            yield
        finally:
            if augments is not None:
                preprocessor.batch_augments = augments
            model.to(home)
            for module, flag in flags.items():
                module.training = flag


def calibrate(model: nn.Module, units: UnitSet, calibration: Calibration,
              score: Score = channel_independence) -> dict[str, Tensor]:
    """Return the scores of all prunable units, averaged over batches of data.

    Args:
        model: The dense model, on any device; weights, flags and random state stay as they were.
        units: Its units.
        calibration: The data.
        score: Gives the scores ``(N, C)`` of feature maps ``(N, C, S)``.

    Returns:
        By unit ``(num_channels,)``, float64, on the CPU.

    Raises:
        ConfigError: If there is no data, or too little.
        CheckpointError: If ``calibration.partial`` is of another calibration, or of more batches.
        PruningError: If a feature map holds NaN or infinity, or none was seen of a unit.
    """
    return scores_of(Calibrator(model, units, score), calibration)


def scores_of(sums: RunningSums, calibration: Calibration) -> dict[str, Tensor]:
    """Run a calibration, or the rest of one that was interrupted, and return the scores of all prunable units.

    For errors see :func:`calibrate`.
    """
    partial = calibration.partial_sums(sums)
    stored = None if partial is None else partial.load()
    if stored is not None:
        sums.load_state_dict(stored)
        print_log(f'{partial.path}: goes on after {sums.batches} batches', logger='current')

    def save(done: RunningSums) -> None:
        if partial is not None and done.batches % partial.every == 0:
            partial.save(done.state_dict())
    with preserved_random_state():
        set_random_seed(calibration.seed)
        sums.run(calibration.build_dataloader(), calibration.num_batches, save)
    print_log(f'{len(sums.units.prunable)} units scored on {calibration.num_batches} batches',
              logger='current')
    scores = sums.scores()
    if partial is not None:
        partial.remove()
    return scores
