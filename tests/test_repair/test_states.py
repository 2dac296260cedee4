"""How far states of weights are from the dense model, by plain loops; which one mending keeps."""
from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn

from mmprune_ext.algorithms import L1Norm
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.repair import RepairReport, mending
from mmprune_ext.repair.mending import PRUNED, REPAIRED, STATISTICS, Mending, mend
from mmprune_ext.repair.states import State, distances, outputs, set_state, state_of
from mmprune_ext.units import UnitSet, slim, trace_units
from tests.ranks import on_two_ranks

BOTH = f'{REPAIRED}, {STATISTICS}'


class Toy(nn.Module):
    """A model with two outputs of very different size, one that says nothing, and labels."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale, 1.0]))
        self.register_buffer('shift', torch.tensor(shift))

    def forward(self, x: Tensor) -> dict[str, Any]:
        first = x * self.scale[0] + self.shift
        second = 1000 * x[:, :2] * self.scale[1]
        return {'a': [first, (second,)], 'constant': torch.full((len(x), 3), 5.0), 'labels': x.argmax(1)}


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 4, generator=generator, dtype=torch.float64) for size in (5, 3)]


def by_definition(states: dict[str, tuple[float, float]], batches: list[Tensor]) -> dict[str, float]:
    """Return the distances of states (scale of the second output, shift of the first)."""
    x = torch.cat(batches).numpy()
    dense = [x, 1000 * x[:, :2]]
    found = {}
    for name, (scale, shift) in states.items():
        own = [x + shift, 1000 * scale * x[:, :2]]
        shares = [np.sum((a - b) ** 2) / np.sum((b - b.mean()) ** 2) for a, b in zip(own, dense)]
        found[name] = float(np.sqrt(np.mean(shares)))
    return found


STATES = {'same': (1.0, 0.0), 'scaled': (0.5, 0.0), 'shifted': (1.0, 0.7)}


def states_of_toys() -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, (scale, shift) in STATES.items():
        toy = Toy(shift=shift)
        toy.scale.data[1] = scale
        found[name] = state_of(toy)
    return found


def test_distances_by_definition(batches):
    found = distances(Toy(), states_of_toys(), Toy(), batches)
    assert found == pytest.approx(by_definition(STATES, batches), rel=1e-6, abs=1e-12)
    assert found['same'] == 0


def test_a_constant_answer_is_at_distance_one(batches):
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x) + torch.cat(batches).mean()

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert distances(Constant(), {'': {}}, Same(), batches)[''] == pytest.approx(1)


def test_an_output_that_is_not_finite_is_infinitely_far(batches):
    found = distances(Toy(), {'nan': state_of(Toy(math.nan)), 'inf': state_of(Toy(math.inf)),
                              'good': state_of(Toy(2.0))}, Toy(), batches)
    assert (found['nan'], found['inf']) == (math.inf, math.inf) and found['good'] < 2


def test_other_shapes_are_refused(batches):
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3]

    with pytest.raises(PruningError, match=r'other shapes than the dense one: \(5, 3\), the dense model \(5, 4\)'):
        distances(Other(), {'': {}}, nn.Identity(), batches)


def test_outputs_are_found_in_samples_without_their_ground_truth():
    sample = BaseDataElement(gt_sem_seg=PixelData(data=torch.ones(1, 2, 2)), seg_logits=PixelData(data=torch.zeros(
        3, 2, 2)), pred_sem_seg=PixelData(data=torch.ones(1, 2, 2, dtype=torch.long)))

    class Predicting(nn.Module):
        def forward(self, x: Tensor) -> list[BaseDataElement]:
            return [sample]

    assert [tuple(tensor.shape) for tensor in outputs(Predicting(), torch.ones(1))] == [(3, 2, 2)]
    sample.pop('seg_logits')
    with pytest.raises(PruningError, match='Predicting gives no tensors that could be compared'):
        outputs(Predicting(), torch.ones(1))


def test_a_state_is_a_copy_of_parameters_and_buffers():
    toy = Toy(2.0, 3.0)
    state = state_of(toy)
    toy.scale.data.zero_()
    toy.shift.zero_()
    set_state(toy, state)
    assert toy.scale.tolist() == [2, 1] and float(toy.shift) == 3
    assert isinstance(toy.scale, nn.Parameter) and toy.scale.requires_grad


# ---------------------------------------------------------------- mending a classifier


@pytest.fixture
def dense(tiny_config, dense_checkpoint) -> nn.Module:
    config = tiny_config()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_architecture(config.model, config.data_preprocessor)
    load_weights(model, str(dense_checkpoint))
    return model


@pytest.fixture
def units(dense) -> UnitSet:
    found = trace_units(dense, (32, 32))
    for unit in found.prunable.values():
        unit.choose(range(unit.kept_number(0.5)))
    return found


@pytest.fixture
def pruned(tiny_config, dense, units) -> nn.Module:
    config = tiny_config()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_architecture(config.model, config.data_preprocessor)
    model.load_state_dict(dense.state_dict())
    return slim(model, units)


@pytest.fixture
def settings(tiny_config) -> Mending:
    return Mending(60, 2, tiny_config().train_dataloader)


Repair = Callable[[nn.Module], None]


@pytest.fixture
def repairing(monkeypatch) -> Callable[[Repair], list[Any]]:
    """Return a function that sets what the least squares do; it gives the images that they are handed in each call."""
    def set_repair(change: Repair) -> list[Any]:
        seen = []

        def repair(model: nn.Module, dense: nn.Module, units: UnitSet, dataloader: Iterable[Any], num_images: int,
                   **_: Any) -> RepairReport:
            assert not any(module.training for module in model.modules())
            batches = [torch.stack(batch['inputs']) for batch in dataloader]
            seen.append(torch.cat(batches))
            with torch.no_grad():
                change(model)
            return RepairReport(num_images, {}, {})

        monkeypatch.setattr(mending, 'repair_least_squares', repair)
        return seen
    return set_repair


def spoil(model: nn.Module) -> None:
    model.head.fc.weight.mul_(-50)


def nothing(model: nn.Module) -> None:
    pass


def assert_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = state_of(model)
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in own)


def test_a_repair_that_makes_it_worse_is_not_kept(pruned, dense, units, settings, repairing):
    repairing(spoil)
    before = state_of(pruned)
    mended = mend(pruned, dense, units, settings)
    assert list(mended.distances) == [PRUNED, STATISTICS, REPAIRED, BOTH]
    assert mended.distances[REPAIRED] > 10 * mended.distances[PRUNED]
    assert mended.kept in (PRUNED, STATISTICS) and mended.distances[mended.kept] == min(mended.distances.values())
    changed = [name for name, value in state_of(pruned).items() if not torch.equal(value, before[name])]
    assert all('running' in name or 'num_batches' in name for name in changed)


def test_statistics_that_make_a_repair_worse_are_not_taken(dense, units, settings, repairing):
    """A dense model that is left whole, and spoiled statistics: the old ones are the exact ones."""
    repairing(nothing)
    model = slim(copy.deepcopy(dense), _whole(units))
    mended = mend(model, dense, _whole(units), settings)
    assert mended.distances[PRUNED] == mended.distances[REPAIRED] == 0 < mended.distances[BOTH]
    assert mended.kept == PRUNED
    assert_state(model, state_of(dense))


def test_what_is_nearest_is_kept(pruned, dense, units, settings, repairing):
    """The weights of the repaired state as the stand-in leaves them, where these alone are right."""
    repairing(nothing)
    model, whole = slim(copy.deepcopy(dense), _whole(units)), state_of(dense)
    with torch.no_grad():
        model.head.fc.weight.mul_(-1)
    repairing(lambda m: m.head.fc.weight.copy_(whole['head.fc.weight']))
    mended = mend(model, dense, _whole(units), settings)
    assert (mended.kept, mended.distances[REPAIRED]) == (REPAIRED, 0)
    assert mended.distances[PRUNED] > 1.5
    assert_state(model, whole)


def _whole(units: UnitSet) -> UnitSet:
    whole = units.copy()
    for unit in whole.values():
        unit.choose(None)
    return whole


def test_without_new_statistics_there_are_two_states(pruned, dense, units, tiny_config, repairing):
    repairing(nothing)
    mended = mend(pruned, dense, units, Mending(20, 0, tiny_config().train_dataloader), given='as given')
    assert list(mended.distances) == ['as given', REPAIRED]
    assert mended.kept == 'as given'  # of two that are as near the former


def test_compared_are_images_that_the_repair_has_not_seen(pruned, dense, units, tiny_config, repairing, monkeypatch):
    """The digits' 120 images in batches of 20: one batch is a fifth of them."""
    seen, compared = repairing(nothing), []

    def look(model: nn.Module, states: Any, dense: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        compared.extend(torch.stack(batch['inputs']) for batch in batches)
        return dict.fromkeys(states, 0.0)

    monkeypatch.setattr(mending, 'distances', look)
    mended = mend(pruned, dense, units, Mending(60, 2, plain(tiny_config())))
    assert (mended.compared, mended.unseen) == (20, True)
    compared, repaired = torch.cat(compared), torch.cat(seen)
    assert (len(compared), len(repaired)) == (20, 100)
    for image in compared:
        assert not any(torch.equal(image, other) for other in repaired)


def test_where_there_is_one_batch_it_serves_both(pruned, dense, units, tiny_config, repairing):
    seen = repairing(nothing)
    mended = mend(pruned, dense, units, Mending(60, 0, {**plain(tiny_config()), 'batch_size': 120}))
    assert (mended.compared, mended.unseen, len(seen[0])) == (120, False, 120)


def plain(config: Any) -> dict[str, Any]:
    """Return the training data without random crops."""
    loader = config.train_dataloader
    loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step.type != 'RandomCrop']
    return loader


def test_it_is_the_same_each_time_and_leaves_the_random_state(dense, units, settings, repairing):
    repairing(lambda model: model.head.fc.weight.add_(0.01 * torch.randn(model.head.fc.weight.shape)))
    found = []
    for seed in (3, 4):
        model = slim(copy.deepcopy(dense), units)
        model.backbone.layer1.train()
        model.head.eval()
        flags = [module.training for module in model.modules()]
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # of the crops
        before = torch.get_rng_state(), random.getstate()
        mended = mend(model, dense, units, settings)
        assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
        assert flags == [module.training for module in model.modules()]
        found.append((mended.kept, mended.distances, state_of(model)))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(found[0][2][name], found[1][2][name]) for name in found[0][2])


@pytest.mark.parametrize(('settings', 'says'), [
    ({'num_images': 0}, 'num_images should be an integer of at least 1, but got 0'),
    ({'num_images': 1.5}, 'num_images .* got 1.5'), ({'bn_batches': -1}, 'bn_batches .* at least 0'),
    ({'seed': True}, 'seed .* got True'), ({'ridge': -1}, 'ridge should be a number of at least 0, but got -1'),
    ({'positions': 1.5}, 'positions is a share, above 0 and at most 1, but got 1.5'),
    ({'dataloader': 'train'}, "dataloader .* 'train'"),
    ({'images': 5}, 'unknown key "images"; known are num_images'), (512, 'expected settings such as .* got 512')])
def test_bad_settings(settings, says):
    with pytest.raises(ConfigError, match=f'repair: {says}'):
        Mending.from_config(settings)


def test_without_data():
    with pytest.raises(ConfigError, match='repair needs data: set repair.dataloader'):
        mend(nn.Identity(), nn.Identity(), UnitSet([]), Mending())
    with pytest.raises(ConfigError, match='no batches'):
        mend(nn.Identity(), nn.Identity(), UnitSet([]), Mending(dataloader=[]))


# ---------------------------------------------------------------- two processes


def found_on_rank(config: str, checkpoint: str, batches: str) -> tuple[dict[str, float], dict[str, float], State]:
    """Return the distances of toys, those of a model that is mended while it is built, and its weights."""
    settings = Config.fromfile(config)
    toys = distances(Toy(), states_of_toys(), Toy(), torch.load(batches)[dist.get_rank()::2])
    init_default_scope('mmpretrain')
    model = L1Norm(settings.model, dict(type='mmprune_ext.L1Mutator', demo_inputs=(32, 32)), 0.5,
                   checkpoint=checkpoint, data_preprocessor=settings.data_preprocessor,
                   repair=dict(num_images=40, bn_batches=1, dataloader=settings.train_dataloader))
    return toys, model.mended.distances, state_of(model)


@pytest.mark.e2e
def test_two_processes_find_the_same(batches, tiny_config, dense_checkpoint, tmp_path):
    """The distances of one process that has all batches; and each other's weights to the last bit."""
    torch.save(batches, tmp_path / 'batches.pth')
    tiny_config().dump(tmp_path / 'config.py')
    first, second = on_two_ranks(found_on_rank, tmp_path, tmp_path / 'config.py', dense_checkpoint,
                                 tmp_path / 'batches.pth')
    assert first[0] == second[0] == pytest.approx(by_definition(STATES, batches), rel=1e-6, abs=1e-12)
    assert first[1] == second[1] and first[1]['repaired'] < first[1]['pruned']
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])
