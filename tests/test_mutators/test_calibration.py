"""Scores summed up over batches against the definition, on feature maps that plain hooks recorded."""
from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from torch import Tensor, nn

from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import CheckpointError, ConfigError, PruningError
from mmprune_ext.mutators import CHIPMutator
from mmprune_ext.mutators.calibration import Calibration, Calibrator, calibrate
from mmprune_ext.units import UnitSet, trace_units
from tests.ranks import on_two_ranks

SIZE = (32, 32)


def nuclear(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix).sum())


def by_definition(maps: Tensor) -> Tensor:
    """Return the mean over images of the nuclear norm that each channel accounts for."""
    total = torch.zeros(maps.shape[1], dtype=torch.float64)
    for image in maps.flatten(2).double():
        whole = nuclear(image)
        for channel in range(len(image)):
            masked = image.clone()
            masked[channel] = 0
            total[channel] += whole - nuclear(masked)
    return total / len(maps)


@pytest.fixture
def model(tiny_config: Any, dense_checkpoint: Path) -> nn.Module:
    config = tiny_config()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = build_architecture(config.model, config.data_preprocessor)
    load_weights(network, str(dense_checkpoint))
    return network


@pytest.fixture
def units(model: nn.Module) -> UnitSet:
    return trace_units(model, SIZE)


@pytest.fixture
def batches(tiny_config: Any) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [{'inputs': [torch.randint(0, 255, (3, *SIZE), generator=generator, dtype=torch.uint8)
                        for _ in range(size)]} for size in (2, 3, 1)]


def recorded(model: nn.Module, batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the maps after each ReLU, by the path of the ReLU."""
    maps: dict[str, list[Tensor]] = {}
    handles = [module.register_forward_hook(lambda m, args, out, p=path: maps.setdefault(p, []).append(out.clone()))
               for path, module in model.named_modules() if isinstance(module, nn.ReLU)]
    flags = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model.extract_feat(model.data_preprocessor(batch, False)['inputs'])
    for handle in handles:
        handle.remove()
    for module, flag in zip(model.modules(), flags):
        module.training = flag
    return {path: torch.cat(found) for path, found in maps.items()}


def test_scores_are_those_of_the_definition(model, units, batches):
    """Inner convolutions: their own map; stage outputs: the mean over all sums that make the stage."""
    maps = recorded(model, batches)
    scores = calibrate(model, units, Calibration(3, batches))
    assert scores.keys() == units.prunable.keys()
    for stage in (1, 2, 3):
        found = scores[f'backbone.layer{stage}.0.conv1']
        torch.testing.assert_close(found, by_definition(maps[f'backbone.layer{stage}.0.relu1']), rtol=1e-4, atol=0)
    # Stem and stage 1 are one unit; the zero-padded shortcuts of the others have no weights.
    joined = (by_definition(maps['backbone.relu1']) + by_definition(maps['backbone.layer1.0.relu2'])) / 2
    torch.testing.assert_close(scores['backbone.conv1'], joined, rtol=1e-4, atol=0)
    torch.testing.assert_close(scores['backbone.layer2.0.conv2'], by_definition(maps['backbone.layer2.0.relu2']),
                               rtol=1e-4, atol=0)


def test_images_count_alike_in_batches_of_any_size(model, units, batches):
    images = [image for batch in batches for image in batch['inputs']]
    whole = calibrate(model, units, Calibration(1, [{'inputs': images}]))
    parts = calibrate(model, units, Calibration(3, batches))
    for name in units.prunable:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=0)


def test_nothing_is_left_changed(model, units, batches):
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    model.train()
    model.backbone.layer1.eval()
    flags = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    calibrate(model, units, Calibration(3, batches))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_batches_are_seen_unmixed(model, units, batches):
    """Mixup and the like, which the preprocessor does in training, would change what is scored."""
    from mmpretrain.structures import DataSample
    plain = calibrate(model, units, Calibration(3, batches))

    def mixed(*_: Any) -> None:
        raise AssertionError('mixed')
    for batch in batches:  # labels are mixed, too, as vectors
        batch['data_samples'] = [DataSample().set_gt_label(0) for _ in batch['inputs']]
    model.data_preprocessor.to_onehot = True
    model.data_preprocessor.batch_augments = mixed
    again = calibrate(model, units, Calibration(3, batches))
    assert model.data_preprocessor.batch_augments is mixed
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_same_seed_gives_the_same_scores(model, units, tiny_config):
    """Of the config's own dataloader, which shuffles and crops at random."""
    loader = tiny_config().train_dataloader
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        first = calibrate(model, units, Calibration(2, loader, seed=1))
        np.random.seed(7)  # what the process has drawn before does not matter
        random.seed(7)
        torch.manual_seed(7)
        second = calibrate(model, units, Calibration(2, loader, seed=1))
        other = calibrate(model, units, Calibration(2, loader, seed=2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_one_forward_pass_a_batch_and_only_sums_are_held(model, units, batches):
    passes: list[int] = []
    handle = model.backbone.register_forward_hook(lambda m, args, out: passes.append(len(args[0])))
    maps: list[weakref.ref] = []
    alive: list[int] = []

    def score(values: Tensor) -> Tensor:
        alive.append(sum(ref() is not None for ref in maps))
        maps.append(weakref.ref(values))
        return values.double().mean(2)
    calibrator = Calibrator(model, units, score)
    calibrator.run(batches, 3)
    handle.remove()
    assert passes == [2, 3, 1]
    assert len(maps) == 3 * 7
    assert max(alive) == 0
    held = sum(total.numel() for total in [*calibrator.sums.values(), *calibrator.samples.values()])
    assert held == 2 * (8 + 8 + 8 + 16 + 16 + 32 + 32)


def test_layers_outside_the_backbone(batches):
    """For units of the head the whole model runs."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = build_architecture(dict(
            type='ImageClassifier', backbone=dict(type='mmprune_ext.CifarVGG', depth=11),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='StackedLinearClsHead', num_classes=10, in_channels=512, mid_channels=[12],
                      loss=dict(type='CrossEntropyLoss'))))
    units = trace_units(network, SIZE, 'head')
    name = next(iter(units.prunable))
    assert name.startswith('head')
    scores = calibrate(network, units, Calibration(1, batches))
    # One place a channel: the norm of a vector, and of the vector without one entry.
    seen: list[Tensor] = []
    handle = network.head.layers[0].register_forward_hook(lambda m, args, out: seen.append(out.double()))
    network.eval()
    with torch.no_grad():
        network(**network.data_preprocessor(batches[0], False))
    handle.remove()
    torch.testing.assert_close(scores[name], by_definition(seen[0][:, :, None]), rtol=1e-4, atol=1e-12)


class FirstOnly(nn.Module):
    """The last three channels of its layer are an output, and the others can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)
        self.reads = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.layer(x).relu()
        return self.reads(found[:, :-3]), found[:, -3:]


def test_a_layer_with_few_prunable_channels():
    network, image = FirstOnly(), torch.randn(2, 3, 8, 8)
    units = trace_units(network, image, 'all')
    assert {name: unit.num_channels for name, unit in units.prunable.items()} == {'layer': 5}
    scores = calibrate(network, units, Calibration(1, [image]))
    with torch.no_grad():
        expected = by_definition(network.layer(image).relu())[:5]
    torch.testing.assert_close(scores['layer'], expected, rtol=1e-4, atol=0)


# ---------------------------------------------------------------- interrupted


class Killed(Exception):
    """The process is gone."""


def test_an_interrupted_calibration_goes_on(model, units, batches, tmp_path):
    partial = tmp_path / 'sums'
    whole = calibrate(model, units, Calibration(3, batches))

    def broken() -> Iterator[Any]:
        yield from batches[:2]
        raise Killed
    with pytest.raises(Killed):
        calibrate(model, units, Calibration(3, broken(), partial=str(partial), save_every=2))
    assert torch.load(partial, weights_only=True)['state']['batches'] == 2
    # What was summed up is not computed again: these batches could not be.
    rest = [None, None, batches[2]]
    resumed = calibrate(model, units, Calibration(3, rest, partial=str(partial), save_every=2))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert not partial.exists()


def test_sums_of_something_else_are_refused(model, units, batches, tmp_path):
    partial = tmp_path / 'sums'
    options = {'partial': str(partial), 'save_every': 1}

    def interrupted() -> None:
        with pytest.raises(TypeError):
            calibrate(model, units, Calibration(2, [batches[0], None], **options))
    interrupted()
    with pytest.raises(CheckpointError, match='sums of a calibration of other weights, units or data; delete the file'):
        calibrate(model, units, Calibration(2, batches, seed=1, **options))
    with torch.no_grad():
        model.backbone.conv1.weight[0, 0, 0, 0] += 1
    with pytest.raises(CheckpointError, match='of other weights'):
        calibrate(model, units, Calibration(2, batches, **options))
    partial.write_bytes(b'nonsense')
    with pytest.raises(CheckpointError, match='cannot be read'):
        calibrate(model, units, Calibration(2, batches, **options))


# ---------------------------------------------------------------- several processes


def scores_on_rank(config: str, checkpoint: str) -> dict[int, dict[str, Tensor]]:
    """Return the scores of the tiny classifier on four batches, and on one."""
    settings = Config.fromfile(config)
    init_default_scope('mmpretrain')
    network = build_architecture(settings.model, settings.data_preprocessor)
    load_weights(network, checkpoint)
    units = trace_units(network, SIZE)
    return {number: calibrate(network, units, Calibration(number, settings.train_dataloader)) for number in (4, 1)}


@pytest.mark.e2e
def test_two_processes_score_as_one(model, units, tiny_config, dense_checkpoint, tmp_path):
    """The sampler deals the same images to two processes; a process without a share gets the result, too."""
    config = tiny_config()
    data = config.train_dataloader.dataset
    data.pipeline = [data.pipeline[0], data.pipeline[-1]]  # no random crop
    config.dump(tmp_path / 'config.py')
    ranks = on_two_ranks(scores_on_rank, tmp_path, tmp_path / 'config.py', dense_checkpoint)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        alone = {4: calibrate(model, units, Calibration(4, config.train_dataloader))}
        # The only batch is that of rank 0, which has every other one of the shuffled images.
        order = torch.randperm(120, generator=torch.Generator().manual_seed(0))[::2][:20].tolist()
        data.indices = [data.indices[place] for place in order]
        alone[1] = calibrate(model, units, Calibration(1, config.train_dataloader))
    for number, scores in alone.items():
        for name, values in scores.items():
            assert torch.equal(ranks[0][number][name], ranks[1][number][name])
            torch.testing.assert_close(ranks[0][number][name], values, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- what cannot work


@pytest.mark.parametrize(('settings', 'message'), [
    ({'num_batches': 0}, 'num_batches should be an integer of at least 1, but got 0'),
    ({'num_batches': 2.5}, 'num_batches should be an integer of at least 1, but got 2.5'),
    ({'num_batches': True}, 'num_batches should be an integer of at least 1, but got True'),
    ({'seed': -1}, 'seed should be an integer of at least 0, but got -1'),
    ({'batches': 3}, 'unknown key "batches"; known are num_batches, dataloader, seed'),
    (7, 'expected settings such as dict.num_batches=5., but got 7'),
    ({'dataloader': 'configs/a.py'}, "dataloader should be a dataloader or its config, but got 'configs/a.py'"),
    ({'dataloader': 7}, 'dataloader should be a dataloader or its config, but got 7')])
def test_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        CHIPMutator(calibration=settings)


def test_no_data(model, units):
    with pytest.raises(ConfigError, match='calibration needs data: set calibration.dataloader'):
        calibrate(model, units, Calibration())


def test_too_few_batches(model, units, batches):
    with pytest.raises(ConfigError, match='num_batches is 4, but the dataloader has only 3 batches'):
        calibrate(model, units, Calibration(4, batches))


def test_data_that_end_early(model, units, batches):
    with pytest.raises(ConfigError, match='the dataloader ended after 3 of 4 batches; lower num_batches'):
        calibrate(model, units, Calibration(4, iter(batches)))


def test_fewer_batches_than_before_the_interruption(model, units, batches, tmp_path):
    options = {'partial': str(tmp_path / 'sums'), 'save_every': 1}
    with pytest.raises(TypeError):
        calibrate(model, units, Calibration(3, [*batches[:2], None], **options))
    with pytest.raises(CheckpointError, match='the sums so far are of 2 batches, but only 1 are wanted'):
        calibrate(model, units, Calibration(1, batches, **options))


def test_nan_names_the_layer(model, units, batches):
    with torch.no_grad():
        model.backbone.layer2[0].conv1.weight[3] = float('nan')
    with pytest.raises(PruningError, match=r'unit "backbone.layer2.0.conv1", layer "backbone.layer2.0.conv1", '
                       r'calibration batch 1: .*NaN'):
        calibrate(model, units, Calibration(1, batches))


def test_a_layer_that_does_not_run(model, units, batches):
    """What tracing saw is not called on real data."""
    calibrator = Calibrator(model, units)
    calibrator._forward = lambda data: model.backbone.layer1(model.backbone.stem(data['inputs']))
    calibrator.run(batches, 1)
    with pytest.raises(PruningError, match='unit "backbone.layer2.0.conv1": the calibration saw no feature map'):
        calibrator.scores()
