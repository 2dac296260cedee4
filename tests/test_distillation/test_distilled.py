"""A student beside its teachers is the student: its class, names, files; only its losses have more terms."""
from __future__ import annotations

import copy
import io
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmprune_ext.algorithms import L1Norm
from mmprune_ext.compact.checkpoint import ADAPTERS, RUN_UNITS
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.distillation import Distilled
from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import take_student, with_teachers
from mmprune_ext.registry import MODELS
from mmprune_ext.settings.reading import read_config
from mmprune_ext.workflows.pruning import export_run
from tests.runs import differing, state, train
from tests.test_distillation.test_losses import softmax_by_definition

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


@pytest.fixture
def dense_teacher(dense_config_file: Path, dense_checkpoint: Path) -> dict[str, str]:
    return dict(config=str(dense_config_file), checkpoint=str(dense_checkpoint))


@pytest.fixture
def compact_teacher(pruned: Path) -> dict[str, str]:
    return dict(config=str(pruned / 'compact_config.py'))


@pytest.fixture
def distilled(tiny_config: Callable[..., Config], dense_teacher: dict[str, str],
              compact_teacher: dict[str, str]) -> Callable[..., Config]:
    """Return a function that puts the model of a config beside a dense and a compact teacher."""
    def make(config: Config | None = None, **settings: Any) -> Config:
        config = config or tiny_config()
        config.model = dict(type='mmprune_ext.Distilled', student=config.model,
                            teachers=[dense_teacher, compact_teacher], demo_inputs=(32, 32), **settings)
        return config
    return make


def build(config: Config, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


def batch(count: int = 4, classes: int = 10) -> dict[str, Any]:
    from mmpretrain.structures import DataSample
    generator = torch.Generator().manual_seed(1)
    return dict(inputs=torch.randn(count, 3, 32, 32, generator=generator),
                data_samples=[DataSample().set_gt_label(number % classes) for number in range(count)])


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model.head(model.extract_feat(images))


# ---------------------------------------------------------------- the class and its names


def test_is_the_student(distilled, tiny_config):
    model, plain = build(distilled()), build(tiny_config())
    assert isinstance(model, Distilled) and isinstance(model, type(plain))
    assert type(model).__name__ == 'ImageClassifier'
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    # What it starts from does not depend on teachers, which draw values when they are built.
    assert differing(model.state_dict(), plain.state_dict()) == []
    assert torch.rand(1) == (build(tiny_config()), torch.rand(1))[1]


def test_teachers_stand_beside(distilled):
    model = build(distilled())
    teachers = [teacher.model for teacher in model.distillation.teachers]
    assert len(teachers) == 2
    model.train()
    assert model.training and model.backbone.bn1.training
    assert not any(module.training for teacher in teachers for module in teacher.modules())
    assert not any(value.requires_grad for teacher in teachers for value in teacher.parameters())
    average = copy.deepcopy(model)  # as a moving average makes it
    assert type(average) is type(model) and average.distillation is model.distillation
    assert average.head.fc.weight.data_ptr() != model.head.fc.weight.data_ptr()


def test_pickled(distilled):
    model = build(distilled()).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    images = batch()['inputs']
    assert type(again) is type(model)
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)


def test_without_teachers(distilled, tiny_config):
    student, plain = build(distilled()).without_teachers(), build(tiny_config())
    assert type(student) is type(plain) and vars(student).keys() == vars(plain).keys()


def test_a_pruning_run_is_a_student(distilled, pruning_config):
    config = pruning_config()
    plain, model = build(config), build(distilled(pruning_config()))
    assert isinstance(model, L1Norm) and isinstance(model, Distilled)
    assert model.units.to_json() == plain.units.to_json()
    assert model.state_dict()._metadata[''][RUN_UNITS] == plain.state_dict()._metadata[''][RUN_UNITS]
    exported, wanted = model.export_model(), plain.export_model()
    assert type(exported) is type(wanted) and vars(exported).keys() == vars(wanted).keys()
    images = batch()['inputs']
    torch.testing.assert_close(exported.eval()(images), wanted.eval()(images), rtol=0, atol=0)
    assert type(copy.deepcopy(model)) is type(model)


def test_tools_see_the_student(distilled, pruning_config):
    config = distilled(pruning_config(), temperature=3.0)
    before = copy.deepcopy(config.model)
    take_student(config)
    assert config.model.type == 'mmprune_ext.L1Norm'
    with_teachers(config)
    assert config.model == before and 'distillation' not in config
    with_teachers(config)
    assert config.model == before


def test_an_attribute_of_the_same_name(distilled):
    from mmpretrain.models import ImageClassifier

    class Own(ImageClassifier):
        distillation = 'mine'

    MODELS.register_module(module=Own)
    try:
        config = distilled()
        config.model.student.type = 'mmprune_ext.Own'
        with pytest.raises(ConfigError, match='Own has an attribute "distillation"'):
            build(config)
    finally:
        MODELS.module_dict.pop('Own')


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize('temperature', [None, 2.0])
def test_loss_by_definition(distilled, temperature):
    """Beside the model's own loss, which is what it would be without."""
    model = build(distilled(temperature=temperature, loss_weight=0.5)).train()
    data = batch()
    plain = model.without_teachers().train()
    own = logits(copy.deepcopy(plain), data['inputs']).tolist()
    taught = [logits(teacher.model, data['inputs']).tolist() for teacher in model.distillation.teachers]
    wanted = sum(softmax_by_definition(own[n], [t[n] for t in taught], temperature or 5.0) for n in range(4)) / 4
    expected = plain(**data, mode='loss')
    losses = model(**data, mode='loss')
    assert losses.keys() == {'loss', 'loss_distill'}
    assert torch.equal(losses['loss'], expected['loss'])
    assert float(losses['loss_distill']) == pytest.approx(0.5 * wanted, rel=1e-4)


def test_gradients_reach_the_student_alone(distilled):
    model = build(distilled()).train()
    teachers = [copy.deepcopy(teacher.model.state_dict()) for teacher in model.distillation.teachers]
    model(**batch(), mode='loss')['loss_distill'].backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in model.head.parameters())
    assert bool(model.backbone.conv1.weight.grad.any())
    for teacher, before in zip(model.distillation.teachers, teachers):
        assert all(value.grad is None for value in teacher.model.parameters())
        assert differing(teacher.model.state_dict(), before) == []


def test_other_modes_are_the_students(distilled):
    model = build(distilled())
    data = batch()
    assert model.eval()(**data, mode='loss').keys() == {'loss'}
    assert isinstance(model.train()(data['inputs']), torch.Tensor)
    assert 'forward' not in vars(model.head)


def test_mixed_images_are_what_teachers_see(distilled):
    """Mixup is done to the batch before the model is called."""
    config = distilled()
    config.data_preprocessor.batch_augments = dict(augments=[dict(type='Mixup', alpha=1.0)])
    model = build(config).train()
    data = batch()
    torch.manual_seed(0)
    mixed = model.data_preprocessor(dict(inputs=list(data['inputs']), data_samples=data['data_samples']), True)
    seen = []
    teacher = model.distillation.teachers[0]
    teacher.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**mixed, mode='loss')
    assert torch.equal(seen[0], mixed['inputs'])


# ---------------------------------------------------------------- maps


def test_maps_of_other_widths(distilled, pruned):
    """A narrower student gets 1x1 convolutions to the dense teacher's width, and only there."""
    config = Config.fromfile(pruned / 'compact_config.py')
    model = build(distilled(config, maps=['backbone', 'neck'], maps_weight=0.1)).train()
    added = {name: tuple(value.shape) for name, value in model.named_parameters() if name.startswith(ADAPTERS)}
    width = model.head.fc.in_features
    assert added[f'{ADAPTERS}.backbone_0_0.weight'] == (32, width, 1, 1) and width < 32
    assert {name.split('.')[1] for name in added} == {'backbone_0_0', 'neck_0_0'}
    assert [name for name, _ in model.named_parameters()][-1].startswith(ADAPTERS)
    data = batch()
    losses = model(**data, mode='loss')
    assert losses.keys() == {'loss', 'loss_distill', 'loss_distill_backbone', 'loss_distill_neck'}
    assert 0 < float(losses['loss_distill_neck']) < 0.2
    sum(losses.values()).backward()
    assert all(value.grad is not None for name, value in model.named_parameters())
    assert not any(ADAPTERS in name for name in model.export_model().state_dict())


def test_maps_by_definition(distilled):
    """1 minus the correlation of each channel with its own, averaged over teachers."""
    config = distilled(maps=['neck'], outputs=[])
    config.model.teachers = config.model.teachers[:1] * 2
    model = build(config).train()
    data = batch()
    plain = model.without_teachers().train()
    own, = plain.extract_feat(data['inputs'])
    there, = model.distillation.teachers[0].model.extract_feat(data['inputs'])
    pairs = [(own[:, c], there[:, c]) for c in range(own.shape[1])]
    wanted = sum(1 - float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs if float(pair[1].std()) > 1e-3)
    losses = model(**data, mode='loss')
    assert losses.keys() == {'loss', 'loss_distill_neck'}
    assert float(losses['loss_distill_neck']) == pytest.approx(wanted / len(pairs), abs=0.02)


# ---------------------------------------------------------------- in the Runner


class Order(Hook):
    """Note the shapes in the optimizer."""

    def before_train(self, runner: Runner) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        self.shapes = [tuple(value.shape) for group in groups for value in group['params']]


def test_weight_0_is_plain_training(distilled, tiny_config, tmp_path):
    """Bit by bit, with the order of the optimizer's parameters, and teachers are not even read."""
    ends, orders = [], []
    for name in ('plain', 'distilled'):
        config = tiny_config({'work_dir': str(tmp_path / name)})
        config.train_dataloader.dataset.indices = config.train_dataloader.dataset.indices[::2]
        config.model.head = dict(type='StackedLinearClsHead', num_classes=10, in_channels=32, mid_channels=[16],
                                 dropout_rate=0.5, loss=dict(type='CrossEntropyLoss'))
        if name == 'distilled':
            config = distilled(config, loss_weight=0)
            config.model.teachers = [dict(config='missing.py')]
        order = Order()
        train(config, order)
        ends.append(torch.load(tmp_path / name / 'epoch_1.pth', weights_only=False))
        orders.append(order.shapes)
    assert differing(ends[0]['state_dict'], ends[1]['state_dict']) == []
    assert orders[0] == orders[1]
    assert str(ends[0]['optimizer']) == str(ends[1]['optimizer'])


def test_a_weight_changes_the_training(distilled, tiny_config, tmp_path):
    """With a moving average beside it: neither holds a teacher."""
    config = distilled(tiny_config({'work_dir': str(tmp_path)}))
    config.custom_hooks = [*config.custom_hooks, dict(type='EMAHook', momentum=0.1)]
    config.train_dataloader.dataset.indices = config.train_dataloader.dataset.indices[::2]
    runner = train(config)
    end = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    plain = build(tiny_config()).state_dict()
    assert end['state_dict'].keys() == plain.keys()
    assert len(end['ema_state_dict']) == len(plain) + 1  # and the number of steps
    assert 0 < runner.message_hub.get_scalar('train/loss_distill').current() < math.inf


@pytest.mark.e2e
def test_two_processes(distilled, tiny_config, train_on_two_ranks):
    """Through DDP, with adapters: both hold the same weights, which are trained."""
    config = distilled(maps=['neck'])
    config.model.student.backbone.base_channels = 4
    config.model.student.head.in_channels = 16
    weights = train_on_two_ranks(config)
    first, second = weights(0)
    assert any(key.startswith(ADAPTERS) for key in first)
    # Running statistics are each process's own, as in any run without SyncBN.
    assert not [key for key in differing(first, second) if 'running' not in key]
    assert bool(first[f'{ADAPTERS}.neck_0_0.weight'].any())


# ---------------------------------------------------------------- exporting


def test_export_of_a_run_with_adapters(distilled, pruned, tmp_path):
    """The compact config and checkpoint are those of a run without teachers, and load."""
    compact = Config.fromfile(pruned / 'compact_config.py')
    compact.experiment_name = uuid.uuid4().hex
    compact.work_dir = str(tmp_path / 'run')
    config = distilled(compact, maps=['neck'])
    config.train_dataloader.dataset.indices = config.train_dataloader.dataset.indices[::4]
    train(config)
    assert any(key.startswith(ADAPTERS) for key in state(tmp_path / 'run' / 'epoch_1.pth'))
    export_run(config, str(tmp_path / 'run' / 'epoch_1.pth'), tmp_path / 'out', (32, 32))
    written = read_config(str(tmp_path / 'out' / 'compact_config.py'))
    assert 'Distilled' not in written.pretty_text and 'teachers' not in written.pretty_text
    before = Config.fromfile(pruned / 'compact_config.py')
    assert written.keys() - {'experiment_name'} == before.keys() - {'experiment_name'}
    assert state(tmp_path / 'out' / 'compact.pth').keys() == state(pruned / 'compact.pth').keys()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert not isinstance(build_architecture(written.model, written.data_preprocessor), Distilled)
