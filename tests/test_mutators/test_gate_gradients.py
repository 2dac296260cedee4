"""Squared derivatives by gates against one autograd pass a sample, with the gates written into the network."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.errors import CheckpointError, ConfigError, PruningError
from mmprune_ext.mutators.calibration import Calibration, calibrate, scores_of
from mmprune_ext.mutators.gate_gradients import GateGradients, samples_of
from mmprune_ext.units import UnitSet, trace_units
from tests.test_mutators.gated_networks import NETWORKS, SIZE, Network, batches, by_definition, network


def traced(model: nn.Module) -> UnitSet:
    return trace_units(model, SIZE, 'all')


def summed(model: nn.Module, data: Any, number: int | None = None, **options: Any) -> dict[str, Tensor]:
    units = traced(copy.deepcopy(model).float())
    return scores_of(GateGradients(model, units), Calibration(number or len(data), data, **options))


@pytest.mark.parametrize('name', NETWORKS)
def test_the_loop_over_samples(name):
    model, data = network(name), batches(3, 2, 1)
    units = traced(copy.deepcopy(model).float())
    assert set(units.prunable) == set(model.gates)
    expected = by_definition(copy.deepcopy(model), data, {n: u.num_channels for n, u in units.prunable.items()})
    found = summed(model, data)
    for unit in model.gates:
        torch.testing.assert_close(found[unit], expected[unit], rtol=1e-9, atol=1e-20)
        assert found[unit].max() > 0


def test_one_pass_a_batch_where_samples_come_first():
    passes: list[int] = []
    for name, expected in (('residual', [3, 2]), ('windows', [3, 1, 1, 1, 1, 1])):
        model = network(name)
        model.stem.register_forward_hook(lambda m, args, out: passes.append(len(args[0])))
        found = GateGradients(model, traced(copy.deepcopy(model).float()))
        passes.clear()
        found.run(batches(3, 2), 2)
        assert passes == expected


def test_detectors_run_one_image_at_a_time(monkeypatch):
    """Their losses are divided by what they find in a whole batch."""
    model, data = network('residual'), batches(3)
    whole = summed(model, data)
    passes: list[int] = []
    model.stem.register_forward_hook(lambda m, args, out: passes.append(len(args[0])))
    monkeypatch.setattr('mmprune_ext.mutators.gate_gradients.library_of', lambda _: 'mmdet')
    units = traced(network('residual').float())
    alone = scores_of(GateGradients(model, units), Calibration(1, data))
    assert passes == [1, 1, 1]
    for name in whole:
        torch.testing.assert_close(alone[name], whole[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize('frozen', [False, True])
def test_nothing_is_left_changed(frozen):
    model = network('residual').train()
    model.first.eval()
    for parameter in model.stem.parameters():
        parameter.requires_grad_(not frozen)
    flags = [module.training for module in model.modules()]
    needed = [parameter.requires_grad for parameter in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(11)
    before = torch.get_rng_state()
    summed(model, batches(3))
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_frozen_layers_are_scored_as_others():
    model, data = network('residual'), batches(3)
    whole = summed(model, data)
    frozen = network('residual').requires_grad_(False)
    assert all(torch.equal(values, whole[name]) for name, values in summed(frozen, data).items())


class Drawing(Network):
    """Its loss counts half of the outputs, drawn at random, as detectors draw regions; it has one flag of training."""

    gates = ('stem',)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out, self.drop = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Dropout(0.5)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        found = self.out(self.drop(self.stem(inputs).relu()))
        if mode != 'loss':
            return found
        assert self.training and not self.drop.training
        assert not torch.distributed.is_initialized()
        return {'loss': (found.square() * (torch.rand(found.shape[1:]) < 0.5)).mean()}


def test_draws_of_a_loss_are_the_same_after_an_interruption(tmp_path):
    torch.manual_seed(0)
    model, data, partial = Drawing().double(), batches(2, 2, 2), tmp_path / 'sums'
    whole = summed(model, data)

    def broken() -> Iterator[Any]:
        yield from data[:2]
        raise KeyboardInterrupt
    options = {'partial': str(partial), 'save_every': 1}
    with pytest.raises(KeyboardInterrupt):
        summed(model, broken(), 3, **options)
    torch.manual_seed(5)
    resumed = summed(model, [None, None, data[2]], **options)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert not partial.exists()
    # What another method has summed up is of no use.
    with pytest.raises(KeyboardInterrupt):
        summed(model, broken(), 3, **options)
    with pytest.raises(CheckpointError, match='of other weights, units or data'):
        calibrate(model.float(), traced(model), Calibration(3, data, **options))


def test_losses_see_one_process(monkeypatch):
    """They would wait for processes that have no batch."""
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: True)
    torch.manual_seed(0)
    model = Drawing().double()
    GateGradients(model, traced(copy.deepcopy(model).float())).add(batches(2)[0])


def test_samples_of_batches():
    nested = {'inputs': [1, 2], 'data_samples': {'a': torch.tensor([3, 4])}, 'name': 'x'}
    first, second = samples_of(nested)
    assert (first['inputs'], first['name'], second['inputs']) == ([1], 'x', [2])
    assert second['data_samples']['a'].tolist() == [4]
    assert samples_of(([1, 2], ['a', 'b'])) == [[[1], ['a']], [[2], ['b']]]
    for wrong in ({'inputs': [1, 2], 'data_samples': [3]}, {'inputs': []}):
        with pytest.raises(PruningError, match='as many entries in each of its parts, one a sample, but they have'):
            samples_of(wrong)


# ---------------------------------------------------------------- what cannot work


def test_a_model_without_a_loss():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    with pytest.raises(ConfigError, match="Sequential has none: its forward takes no mode='loss'"):
        GateGradients(model, trace_units(model, SIZE, 'all'))


def test_data_without_labels():
    with pytest.raises(PruningError, match='calibration batch 1: Residual gives no loss on the training data: '
                       'TypeError'):
        summed(network('residual'), [{'inputs': torch.randn(2, 3, *SIZE).double()}])


def test_a_loss_that_is_nan():
    model = network('residual')
    with torch.no_grad():
        model.fc.bias[0] = float('nan')
    with pytest.raises(PruningError, match='calibration batch 1: the loss is nan; check checkpoint and data'):
        summed(model, batches(2))


def test_a_unit_that_the_loss_does_not_reach():
    model = network('shared head')
    units = traced(copy.deepcopy(model).float())
    plain = model.forward
    model.forward = lambda inputs, data_samples=None, mode='tensor': (
        {'loss': model.stem(inputs).square().mean()} if mode == 'loss' else plain(inputs))
    with pytest.raises(PruningError, match='unit "stem": no gradient of the loss reaches the layers that read it'):
        scores_of(GateGradients(model, units), Calibration(1, batches(2)))
