"""ChipNet as a model: gates, losses, hard pruning, export, state."""
from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmprune_ext.algorithms import ChipNet
from mmprune_ext.analysis import complexity
from mmprune_ext.errors import CheckpointError, ConfigError, PruningError, TargetError
from mmprune_ext.mutators import ChipNetMutator, L1Mutator
from mmprune_ext.ops.gated_layer import is_gated
from mmprune_ext.registry import MODELS
from mmprune_ext.units import UnitSet

ROOT = Path(__file__).resolve().parents[2]
RESNET = dict(type='mmprune_ext.CifarResNet', depth=8, base_channels=8)
NETWORKS = {'residual': (RESNET, 32),
            'without normalisation': (dict(type='VGG', depth=11, num_classes=-1), 512),
            'depthwise': (dict(type='MobileNetV2', widen_factor=0.25), 1280),
            'split and shuffled': (dict(type='ShuffleNetV2', widen_factor=0.5), 1024)}
BUDGETS = [{'channels': 0.3}, {'volume': 0.3}, {'params': 0.3}, {'flops': 0.3}, {'flops': 0.5, 'params': 0.4}]


def build(model: nn.Module, budget: Any, seed: int | None = 1, **options: Any) -> ChipNet:
    """Return a search with random gates, of which none is as another."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = ChipNet(model, ChipNetMutator(demo_inputs=[32, 32]), budget, **options)
    if seed is not None and built.is_searching:
        generator = torch.Generator().manual_seed(seed)
        for _, gate in built.channel_gates.items():
            gate.psi.data.normal_(generator=generator)
    return built


@pytest.fixture
def resnet(classifier) -> nn.Module:
    model = classifier(RESNET, 32)
    model.is_init = True  # its weights are those that it has
    return model


def images(seed: int = 5) -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def losses(model: nn.Module) -> dict[str, Tensor]:
    samples = [DataSample().set_gt_label(i) for i in range(3)]
    return model(images(), samples, mode='loss')


# ---------------------------------------------------------------- what eval mode and export are


@pytest.mark.parametrize('budget', BUDGETS, ids=lambda budget: '+'.join(budget))
@pytest.mark.parametrize('name', NETWORKS)
def test_eval_mode_is_the_exported_model_within_the_budget(name, budget, classifier):
    backbone, features = NETWORKS[name]
    dense = classifier(backbone, features)
    dense.is_init = True
    kind = type(dense)
    before = complexity(dense, (32, 32), flops=False)
    algorithm = build(dense, budget).eval()
    compact = algorithm.export_model()
    assert type(compact) is kind
    torch.testing.assert_close(compact(images()), algorithm(images()), rtol=1e-4, atol=1e-5)
    after = complexity(compact, (32, 32), flops=False)
    units = algorithm.exported_units.prunable.values()
    left = {'flops': after.macs / before.macs, 'params': after.params / before.params,
            'volume': after.volume / before.volume,
            'channels': sum(u.keep for u in units) / sum(u.num_channels for u in units)}
    assert all(left[name] <= share for name, share in budget.items())
    assert min(share - left[name] for name, share in budget.items()) < 0.01
    assert all(unit.keep >= 1 for unit in units)
    assert not any('gate' in key for key in compact.state_dict())
    assert not any('forward' in vars(module) for module in compact.modules())


def test_a_threshold_on_the_gates_decides(resnet):
    """What stays has larger gates than what goes, but for channels that fill up the budget."""
    algorithm = build(resnet, {'channels': 0.5}).eval()
    stays, goes = [], []
    for name, unit in algorithm.exported_units.prunable.items():
        psi = algorithm.channel_gates[name].psi.tolist()
        stays += [psi[c] for c in unit.indices]
        goes += [value for c, value in enumerate(psi) if c not in unit.indices]
    assert len(stays) == len(goes) == 56
    assert min(stays) > max(goes)


def test_no_unit_is_emptied(resnet):
    algorithm = build(resnet, {'channels': 0.2}, seed=None)
    for i, (_, gate) in enumerate(algorithm.channel_gates.items()):
        gate.psi.data.fill_(-i).add_(torch.rand(len(gate.psi)) / 100)
    keeps = [unit.keep for unit in algorithm.exported_units.prunable.values()]
    assert min(keeps) == 1
    assert sum(keeps) == int(0.2 * 112)


def test_rounding(resnet):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        algorithm = ChipNet(resnet, dict(demo_inputs=[32, 32], divisor=4, min_channels=4), dict(flops=0.6))
    for _, gate in algorithm.channel_gates.items():
        gate.psi.data.normal_()
    keeps = [unit.keep for unit in algorithm.exported_units.prunable.values()]
    assert all(keep % 4 == 0 and keep >= 4 for keep in keeps)


@pytest.mark.parametrize('network', ['resnet56_cifar10', 'vgg16bn_cifar10'])
def test_extreme_budget(network):
    """At a sixteenth of the FLOPs no unit is empty, the compact network is connected, and all of it learns."""
    config = Config.fromfile(ROOT / 'configs' / 'cifar' / f'{network}.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dense = MODELS.build(config.model)
    before = complexity(dense, (32, 32), flops=False).macs
    algorithm = build(dense, {'flops': 0.0625}).eval()
    compact = algorithm.export_model()
    after = complexity(compact, (32, 32), flops=False).macs
    assert 0.0575 < after / before <= 0.0625
    assert min(unit.keep for unit in algorithm.exported_units.values()) >= 1
    torch.testing.assert_close(compact(images()), algorithm(images()), rtol=1e-3, atol=1e-4)
    compact.train()
    optimizer = torch.optim.SGD(compact.parameters(), lr=1e-4)
    compact.parse_losses(losses(compact))[0].backward()
    assert all(parameter.grad.isfinite().all() for parameter in compact.parameters())
    assert bool(next(compact.parameters()).grad.any())  # what the image passes first hears of the loss
    optimizer.step()


# ---------------------------------------------------------------- training


def test_losses_are_the_formulas(resnet):
    algorithm = build(resnet, dict(flops=0.5, channels=0.4, weights=dict(channels=3.0)), budget_weight=7.0,
                      crispness_weight=2.0).train()
    algorithm.set_step(3)
    found = losses(algorithm)
    beta, gamma, steepness = 1.06, 2 * 2 ** 1.5, 25
    gates = {name: [(r, 1 - 2.718281828459045 ** (-gamma * r) + r * 2.718281828459045 ** -gamma) for r in (
        1 / (1 + 2.718281828459045 ** (-beta * p)) for p in gate.psi.tolist())]
             for name, gate in algorithm.channel_gates.items()}
    for name, gate in algorithm.channel_gates.items():
        gates[name][int(gate.psi.argmax())] = (1.0, 1.0)  # the last that would go
    every = [pair for pairs in gates.values() for pair in pairs]
    crispness = sum((z - r) ** 2 for r, z in every) / len(every)
    counts = {name: sum(1 / (1 + 2.718281828459045 ** (-steepness * (z - 0.5))) for _, z in pairs)
              for name, pairs in gates.items()}
    channels = sum(counts.values()) / 112
    soft = algorithm.gate_statistics()
    assert float(found['loss_crispness']) == pytest.approx(2.0 * crispness, rel=1e-5)
    assert soft['soft_channels'] == pytest.approx(channels, rel=1e-5)
    flops = soft['soft_flops']
    assert float(found['loss_budget']) == pytest.approx(
        7.0 * ((flops - 0.5) ** 2 + 3.0 * (channels - 0.4) ** 2), rel=1e-5)
    assert float(algorithm.task_loss) == pytest.approx(float(found['loss']))
    assert not algorithm.task_loss.requires_grad


def test_gradients_reach_weights_and_gates(resnet):
    algorithm = build(resnet, dict(flops=0.5)).train()
    algorithm.set_step(0)
    total, logged = algorithm.parse_losses(losses(algorithm))
    total.backward()
    assert all(bool(parameter.grad.any()) for parameter in algorithm.parameters())
    for _, gate in algorithm.channel_gates.items():
        assert int((gate.psi.grad == 0).sum()) == 1
    parts = [float(logged[name]) for name in ('loss_budget', 'loss_crispness')]
    assert float(total) == pytest.approx(float(algorithm.task_loss) + sum(parts), rel=1e-6)


def test_open_gates_are_the_dense_model(resnet):
    dense = copy.deepcopy(resnet).train()
    algorithm = build(resnet, dict(flops=0.5), seed=None).train()
    for _, gate in algorithm.channel_gates.items():
        gate.psi.data.fill_(1e4)
    torch.testing.assert_close(algorithm(images()), dense(images()))
    algorithm.set_step(10)
    assert algorithm.gate_statistics()['soft_flops'] == pytest.approx(1, abs=1e-6)


def test_gates_follow_what_training_makes_of_them(resnet):
    """Soft in train mode, hard in eval mode; also where parameters change behind the module's back."""
    algorithm = build(resnet, dict(flops=0.5)).eval()
    name, gate = next(iter(algorithm.channel_gates.items()))
    assert gate.mask is not None
    first = algorithm(images())
    assert bool(algorithm.train().channel_gates[name].mask is None)
    algorithm.eval()
    for parameter in algorithm.channel_gates.parameters():  # as averaging hooks do it
        parameter.data.copy_(torch.randn_like(parameter))
    second = algorithm(images())
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, algorithm.export_model()(images()), rtol=1e-4, atol=1e-5)
    with algorithm.soft_evaluation():
        soft = algorithm(images())
        assert algorithm.channel_gates[name].mask is None
    assert not torch.allclose(soft, second)
    torch.testing.assert_close(algorithm(images()), second)


def test_gates_come_back_to_layers_that_were_exchanged(resnet):
    """As mmengine's conversion between kinds of batch norm does after the model was built."""
    algorithm = build(resnet, dict(flops=0.5)).eval()
    want = algorithm(images())
    old = algorithm.backbone.bn1
    new = nn.BatchNorm2d(8).eval()
    new.load_state_dict(old.state_dict())
    algorithm.backbone.bn1 = new
    torch.testing.assert_close(algorithm(images()), want)
    assert is_gated(new, 'out')


def test_gates_settle(resnet):
    """At the end the network that is trained is the one that is pruned."""
    algorithm = build(resnet, dict(flops=0.5), settle=0.3)
    algorithm.set_step(3)
    algorithm.set_progress(13, 20)
    assert not bool(algorithm.channel_gates.decided)
    before = {name: unit.indices for name, unit in algorithm.exported_units.items()}
    algorithm.set_progress(15, 20)
    assert bool(algorithm.channel_gates.decided)
    for _, gate in algorithm.channel_gates.items():
        gate.psi.data.neg_()  # what comes after does not change what was decided
    assert {name: unit.indices for name, unit in algorithm.exported_units.items()} == before
    half = algorithm.gate_losses()
    algorithm.channel_gates.set_settled(0.0)
    for name, value in algorithm.gate_losses().items():
        torch.testing.assert_close(half[name], value * 0.5)
    algorithm.set_progress(18, 20)
    found = algorithm.gate_losses()
    assert float(found['loss_budget']) == float(found['loss_crispness']) == 0
    statistics = algorithm.gate_statistics()
    assert statistics['crisp'] == 1 > statistics['learned'] and statistics['hard_flops'] <= 0.5
    algorithm.eval()
    with algorithm.soft_evaluation():
        soft = algorithm(images())
    torch.testing.assert_close(soft, algorithm(images()))
    torch.testing.assert_close(soft, algorithm.export_model()(images()), rtol=1e-4, atol=1e-5)


def test_what_was_decided_is_open_again_in_another_search(resnet):
    """As where a longer one goes on from its checkpoint, or one with another budget begins from it."""
    dense = copy.deepcopy(resnet)
    algorithm = build(resnet, dict(channels=0.5))
    algorithm.set_progress(19, 20)
    other = build(dense, dict(channels=0.5), seed=None)
    other.load_state_dict(algorithm.state_dict())
    assert bool(other.channel_gates.decided)
    other.set_progress(0, 40)
    assert not bool(other.channel_gates.decided)
    assert all(bool(gate.chosen.all()) for _, gate in other.channel_gates.items())
    before = {name: unit.indices for name, unit in other.exported_units.items()}
    for _, gate in other.channel_gates.items():
        gate.psi.data.neg_()
    assert {name: unit.indices for name, unit in other.exported_units.items()} != before
    other.set_progress(39, 40)
    assert bool(other.channel_gates.decided)


def test_training_needs_something_that_sharpens(resnet):
    algorithm = build(resnet, dict(flops=0.5)).train()
    with pytest.raises(ConfigError, match='nothing sharpens the gates; add .*GateHook'):
        losses(algorithm)


# ---------------------------------------------------------------- state


def test_copy_and_pickle(resnet):
    algorithm = build(resnet, dict(flops=0.5)).eval()
    algorithm.set_step(5)
    want = algorithm(images())
    for other in (copy.deepcopy(algorithm), pickle.loads(pickle.dumps(algorithm))):
        torch.testing.assert_close(other(images()), want)


def test_search_is_rebuilt_from_its_checkpoint(classifier, tmp_path):
    algorithm = build(classifier(RESNET, 32), dict(flops=0.5)).eval()
    algorithm.set_step(5)
    torch.save({'state_dict': algorithm.state_dict(), 'meta': {}}, tmp_path / 'run.pth')
    again = build(classifier(RESNET, 32, seed=3), dict(flops=0.5), seed=7, units=str(tmp_path / 'run.pth'))
    again.load_state_dict(torch.load(tmp_path / 'run.pth', weights_only=False)['state_dict'])
    assert (again.channel_gates.beta, again.channel_gates.gamma) == (
        algorithm.channel_gates.beta, algorithm.channel_gates.gamma)
    torch.testing.assert_close(again.eval()(images()), algorithm(images()))
    assert {n: u.indices for n, u in again.exported_units.items()} == {
        n: u.indices for n, u in algorithm.exported_units.items()}


def test_units_with_choices_make_the_model_compact(classifier, resnet):
    algorithm = build(resnet, dict(flops=0.5)).eval()
    content = json.loads(json.dumps(algorithm.exported_units.to_json()))
    compact = build(classifier(RESNET, 32), None, units=content).eval()
    assert not compact.is_searching
    torch.testing.assert_close(compact(images()), algorithm(images()), rtol=1e-4, atol=1e-5)
    assert set(losses(compact.train())) == {'loss'}
    assert list(compact.state_dict()) == list(classifier(RESNET, 32).state_dict())
    other = UnitSet.from_dict(content, 'units').copy()
    name = next(name for name, unit in other.prunable.items() if unit.keep < unit.num_channels)
    other[name].choose([0])
    wrong = build(classifier(RESNET, 32), None, units=other)
    with pytest.raises(CheckpointError, match='pruned other channels'):
        wrong.load_state_dict(compact.state_dict())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(('options', 'error', 'message'), [
    (dict(budget=None), TargetError, 'budget should say what remains, such as dict'),
    (dict(budget=dict(memory=0.5)), TargetError, 'one or more of flops, params, channels, volume.* got .*memory'),
    (dict(budget=dict(scope='backbone')), TargetError, 'one or more of'),
    (dict(budget=dict(flops=0)), TargetError, 'above 0 and below 1, but got 0'),
    (dict(budget=dict(flops=1.5)), TargetError, 'above 0 and below 1, but got 1.5'),
    (dict(budget=dict(flops='half')), TargetError, "above 0 and below 1, but got 'half'"),
    (dict(budget=dict(flops=0.5, weights=dict(params=1))), TargetError, 'weights should be positive numbers for flops'),
    (dict(budget=dict(flops=0.001)), TargetError, r'flops cannot be reduced to 0.1%; the smallest widths .* leave'),
    (dict(budget=dict(flops=0.5, scope='body')), PruningError, 'no submodule "body"'),
    (dict(budget=dict(flops=0.5), budget_weight=-1), ConfigError, 'budget_weight should be a number of at least 0'),
    (dict(budget=dict(flops=0.5), crispness_weight='1'), ConfigError, 'crispness_weight should be'),
    (dict(budget=dict(flops=0.5), settle=1), ConfigError, 'settle is a share of the search, .* below 1, but got 1'),
    (dict(budget=dict(flops=0.5), step_freq=0), ConfigError, 'step_freq is the number of epochs'),
    (dict(budget=dict(flops=0.5), schedule=dict(alpha=1)), ConfigError, 'schedule takes beta, gamma and steepness'),
    (dict(budget=dict(flops=0.5), schedule=dict(beta=1)), ConfigError, 'schedule: beta should be three positive'),
    (dict(budget=dict(flops=0.5), mutator=L1Mutator()), ConfigError, 'should be a ChipNetMutator, but got L1Mutator'),
], ids=lambda value: value if isinstance(value, str) else None)
def test_bad_settings(options, error, message, resnet):
    with pytest.raises(error, match=message), DefaultScope.overwrite_default_scope('mmpretrain'):
        ChipNet(resnet, **{'mutator': ChipNetMutator(demo_inputs=[32, 32]), **options})


def test_a_diverged_search_is_told(resnet):
    algorithm = build(resnet, dict(flops=0.5)).train()
    name, gate = next(iter(algorithm.channel_gates.items()))
    gate.psi.data[0] = float('nan')
    with pytest.raises(PruningError, match=f'unit "{name}": its gates hold NaN or infinity; did the search diverge'):
        algorithm.eval()


def test_no_other_target(resnet):
    algorithm = build(resnet, dict(flops=0.5))
    for function in (algorithm.mutator.choose, algorithm.mutator.kept_numbers):
        with pytest.raises(TargetError, match='learned within the budget'):
            function(algorithm, ratios=0.5)


def test_is_registered(tiny_config: Callable[..., Any]):
    config = tiny_config()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='mmprune_ext.ChipNet', architecture=config.model, budget=dict(params=0.5),
                                  mutator=dict(demo_inputs=[32, 32]), data_preprocessor=config.data_preprocessor))
    assert isinstance(model, ChipNet) and model.is_searching
