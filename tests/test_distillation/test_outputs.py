"""What is compared in the four libraries, and what cannot be."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint
from torch import nn

from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.distillation import outputs
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import MODELS
from mmprune_ext.settings.reading import read_config
from mmprune_ext.units.demo_inputs import training_passes
from tests.in_process import own_globals
from tests.test_distillation.test_losses import softmax_by_definition

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _fresh_globals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
    with own_globals():
        yield


@pytest.fixture
def taught(tmp_path: Path) -> Callable[..., nn.Module]:
    """Return a function that builds the model of a config beside a teacher of the same config, with other weights."""
    def make(task: str, student: Mapping[str, Any] | None = None, teacher: Mapping[str, Any] | None = None,
             folder: str = 'configs/demo', **settings: Any) -> nn.Module:
        path = str(ROOT / folder / f'scenes_{task}.py')
        other = read_config(path, teacher)
        config = read_config(path, student)
        torch.manual_seed(1)
        model = build_architecture(other.model, other.get('data_preprocessor'))
        save_checkpoint(dict(state_dict=model.state_dict(), meta={}), str(tmp_path / 'teacher.pth'))
        other.dump(tmp_path / 'teacher.py')
        torch.manual_seed(0)
        entry = dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher.pth'))
        with DefaultScope.overwrite_default_scope(config.default_scope):
            return MODELS.build(dict(
                type='mmprune_ext.Distilled', student=config.model, teachers=[entry],
                demo_inputs=None if task == 'pose' else (64, 64),
                data_preprocessor=config.get('data_preprocessor'), **settings))
    return make


def losses_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the losses of a batch of two drawn images with ground truth."""
    torch.manual_seed(0)
    *_, loss_pass = training_passes(model, (64, 64) if not hasattr(model, 'head') else None)
    return loss_pass(model.train())


KINDS = {
    'classification': ('head', 'logits of classes'),
    'detection': ('bbox_head', 'sigmoid logits of 6 classes'),
    'segmentation': ('decode_head', 'logits of classes'),
    'pose': ('head', 'heatmaps'),
}


@pytest.mark.parametrize('task', KINDS)
def test_the_heads_outputs(taught, task):
    path, name = KINDS[task]
    model = taught(task)
    assert model.distillation.compared == [path]
    assert model.distillation.outputs[path].name == name
    losses = losses_of(model)
    plain = losses_of(model.without_teachers())
    assert losses.keys() - plain.keys() == {'loss_distill'}
    assert float(losses['loss_distill'].detach()) > 0
    losses['loss_distill'].backward()
    assert bool(model.backbone.conv1.weight.grad.any() if hasattr(model.backbone, 'conv1')
                else model.backbone.stem[0].weight.grad.any())
    assert not any('forward' in vars(module) for module in model.modules())


def test_softmax_of_a_pixel(taught):
    """By definition, on logits that the heads give."""
    model = taught('segmentation')
    student, teacher = torch.randn(2, 7, 3, 3), torch.randn(2, 7, 3, 3)
    pixels = [(n, row, column) for n in range(2) for row in range(3) for column in range(3)]
    wanted = sum(softmax_by_definition(student[n, :, r, c].tolist(), [teacher[n, :, r, c].tolist()], 1.0)
                 for n, r, c in pixels) / len(pixels)
    found = model.distillation.losses({'decode_head': student}, [{'decode_head': teacher}], nn.ModuleDict())
    assert float(found['loss_distill']) == pytest.approx(wanted, rel=1e-4)


def test_logits_of_another_size(taught):
    """A teacher without the strides of the student."""
    model = taught('segmentation', teacher={'model.backbone.strides': (1, 1, 2, 2)})
    assert float(losses_of(model)['loss_distill'].detach()) > 0


def test_heatmaps_by_definition(taught):
    model = taught('pose')
    student, teacher = torch.rand(2, 17, 4, 3), torch.rand(2, 17, 4, 3)
    wanted = sum((float(a) - float(b)) ** 2 for a, b in zip(student.flatten(), teacher.flatten())) / student.numel()
    found = model.distillation.losses({'head': student}, [{'head': teacher}], nn.ModuleDict())
    assert float(found['loss_distill']) == pytest.approx(wanted, rel=1e-4)


def test_simcc(taught):
    head = {'model.head': dict(
        _delete_=True, type='RTMCCHead', in_channels=256, out_channels=17, input_size=(96, 128),
        in_featuremap_size=(3, 4), simcc_split_ratio=2.0, final_layer_kernel_size=1,
        gau_cfg=dict(hidden_dims=32, s=16, expansion_factor=2, dropout_rate=0., drop_path=0., act_fn='SiLU',
                     use_rel_bias=False, pos_enc=False),
        loss=dict(type='KLDiscretLoss', use_target_weight=True),
        decoder=dict(type='SimCCLabel', input_size=(96, 128), sigma=(4., 4.), simcc_split_ratio=2.0, normalize=False))}
    model = taught('pose', student=head, teacher=head)
    assert model.distillation.outputs['head'].name == 'SimCC axes'
    axes = [torch.randn(1, 17, 192), torch.randn(1, 17, 256)]
    others = [torch.randn_like(axis) for axis in axes]
    wanted = sum(sum(softmax_by_definition(a[0, k].tolist(), [b[0, k].tolist()], 1.0) for k in range(17)) / 17
                 for a, b in zip(axes, others))
    found = model.distillation.losses({'head': tuple(axes)}, [{'head': tuple(others)}], nn.ModuleDict())
    assert float(found['loss_distill']) == pytest.approx(wanted, rel=1e-4)


def test_maps_of_a_neck(taught):
    """Of all levels, with an adapter a level where widths differ."""
    narrow = {'model.neck.out_channels': 32, 'model.bbox_head.in_channels': 32}
    model = taught('detection', student=narrow, maps=['neck'], outputs=[])
    assert sorted(model.distill_adapters) == ['neck_0_0', 'neck_0_1', 'neck_0_2']
    losses = losses_of(model)
    assert 'loss_distill' not in losses and 0 < float(losses['loss_distill_neck'].detach()) < 2


# ---------------------------------------------------------------- what cannot be


def test_two_stages(taught):
    """By its own choice only: what an RPN says, and maps."""
    folder = 'tests/data'
    for settings in ({}, {'outputs': ['roi_head.bbox_head']}):
        with pytest.raises(ConfigError, match=r"has two stages: .* What can be distilled: outputs=\['rpn_head'\], "
                           r"maps=\['neck'\], maps=\['backbone'\]"):
            taught('detection', folder=folder, **settings)
    model = taught('detection', folder=folder, outputs=['rpn_head'], maps=['neck'])
    losses = losses_of(model)
    assert {'loss_distill', 'loss_distill_neck'} < losses.keys()
    assert taught('detection', folder=folder, maps=['neck']).distillation.compared == ['neck']


REFUSED = {
    'classes of a detector': ('detection', {'model.bbox_head.num_classes': 5}, {},
                              'sigmoid logits of 5 classes, .* the student\'s gives sigmoid logits of 6 classes'),
    'levels': ('detection', {'model.neck.num_outs': 4, 'model.bbox_head.strides': [8, 16, 32, 64],
                             'model.bbox_head.regress_ranges': ((-1, 64), (64, 128), (128, 256), (256, 1e8))}, {},
               'they should be as many'),
    'places': ('detection', {'model.backbone.strides': (1, 1, 2, 2)}, {}, 'places would have to be the same'),
    'classes of a segmentor': ('segmentation', {'model.decode_head.num_classes': 5}, {},
                               r'decode_head: has \(1, 5, 16, 16\), the student has \(1, 7, 16, 16\)'),
    'keypoints': ('pose', {'model.head.out_channels': 16}, {}, r'head: has \(1, 16, .*, the student has \(1, 17,'),
    'another task': ('segmentation', {}, {'task': 'detection'},
                     'is a EncoderDecoder of mmseg, the student a FCOS of mmdet'),
    'a part that it lacks': ('detection', {}, {'maps': ['auxiliary_head']}, 'FCOS has no module "auxiliary_head"'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(taught, tmp_path, name):
    task, teacher, settings, message = REFUSED[name]
    settings = dict(settings)
    if 'task' in settings:
        taught(task)  # writes the teacher
        config = read_config(str(ROOT / 'configs' / 'demo' / f'scenes_{settings["task"]}.py'))
        with pytest.raises(ConfigError, match=message):
            MODELS.build(dict(type='mmprune_ext.Distilled', student=config.model, teachers=[
                dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher.pth'))]))
        return
    with pytest.raises(ConfigError, match=message):
        taught(task, teacher=teacher, **settings)


@pytest.mark.parametrize(('sizes', 'fits'), [
    (((16, 16), (32, 32)), True), (((25, 42), (50, 84)), True), (((13, 21), (50, 84)), True),
    (((16, 16), (16, 32)), False), (((16, 16), (7, 7)), True), (((64, 48), (48, 64)), False)])
def test_sizes_that_resizing_mends(sizes, fits):
    maps = [torch.zeros(1, 3, *size) for size in sizes]
    if fits:
        outputs.check_shapes(maps[:1], maps[1:], 'teacher', resizable=True)
        return
    with pytest.raises(ConfigError, match=r'teacher: has \(1, 3, .*, the student has \(1, 3, .*not in proportion'):
        outputs.check_shapes(maps[:1], maps[1:], 'teacher', resizable=True)


def test_outputs_of_several_meanings():
    class Head(nn.Module):
        pass
    Head.__module__ = 'mmpose.models.heads'
    with pytest.raises(ConfigError, match=r'head is a Head and returned \(1, 17, 8, 8\), \(1, 17, 8, 8\); '
                       'distilled are'):
        outputs.output_of(Head(), 'head', (torch.zeros(1, 17, 8, 8), torch.zeros(1, 17, 8, 8)))


def test_labels_that_do_not_exclude_each_other():
    from mmpretrain.models import MultiLabelLinearClsHead
    result = torch.zeros(2, 4)
    output = outputs.output_of(MultiLabelLinearClsHead(4, 8), 'head', result)
    assert output.name == 'logits of labels'
    # 2 log 2 - entropy of (p, 1 - p) at p = sigmoid(2 / 5), times T^2, for each of 4 labels.
    found = output.loss(output.pick(result), [output.pick(result + 2)], 5.0)
    p = torch.sigmoid(torch.tensor(0.4))
    wanted = 4 * 25 * (torch.log(torch.tensor(2.0)) + p * torch.log(p) + (1 - p) * torch.log(1 - p))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)


def test_a_config_without_a_head():
    with pytest.raises(ConfigError, match='Sequential has no head, bbox_head or decode_head; name what is to be'):
        outputs.default_outputs(nn.Sequential(nn.Linear(2, 2)), [])


def test_configs_of_the_repository():
    """The ensembles of the paper: five rounds, or the dense network."""
    for depth in (56, 110):
        for name, count in (('1-5', 5), ('1', 1)):
            path = ROOT / f'configs/pruning/mmcls/l1/l1_resnet{depth}_cifar10_ensemble-{name}.py'
            config = Config.fromfile(path)
            assert config.model.type == 'mmprune_ext.Distilled' and config.model.temperature == 5.0
            assert len(config.model.teachers) == count
            student = config.model.student
            assert student.type == 'mmprune_ext.CompactModel' and student.backbone.depth == depth
            assert 'round_5/' in student.units
            assert read_config(str(path)).model == student
