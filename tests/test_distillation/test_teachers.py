"""Teachers: their images, and what is wrong with them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from torch import nn

from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.distillation.teachers import Teacher
from mmprune_ext.errors import CheckpointError, ConfigError, PruningError
from mmprune_ext.registry import MODELS

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def preprocessor(library: str, settings: Mapping[str, Any]) -> nn.Module:
    if library == 'mmengine':
        from mmengine.model import ImgDataPreprocessor
        return ImgDataPreprocessor(**settings)
    from mmpretrain.models import ClsDataPreprocessor
    return ClsDataPreprocessor(**settings)


class Bare(nn.Module):
    def __init__(self, data_preprocessor: nn.Module) -> None:
        super().__init__()
        self.data_preprocessor = data_preprocessor


IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
PREPROCESSORS = {
    'same': ('mmpretrain', dict(mean=[100.0] * 3, std=[50.0] * 3)),
    'numbers': ('mmpretrain', IMAGENET),
    'order': ('mmpretrain', dict(IMAGENET, to_rgb=True)),
    'order of another class': ('mmengine', dict(IMAGENET, bgr_to_rgb=True)),
    'none': ('mmpretrain', dict()),
    'none but order': ('mmpretrain', dict(to_rgb=True)),
}


@pytest.mark.parametrize('own', PREPROCESSORS)
@pytest.mark.parametrize('given', PREPROCESSORS)
def test_images_are_what_the_teachers_own_preprocessor_makes_of_the_data(given, own):
    raw = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    here, there = (preprocessor(*PREPROCESSORS[name]) for name in (given, own))
    images, wanted = (p({'inputs': list(raw)})['inputs'] for p in (here, there))
    found = Teacher(Bare(there), 'teacher', Bare(here)).converted(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found is images) == (given == own or {given, own} == {'order', 'order of another class'})


def test_preprocessors_of_unknown_kinds():
    class Own(BaseDataPreprocessor):
        pass

    class Other(BaseDataPreprocessor):
        pass

    images = torch.rand(1, 3, 2, 2)
    assert Teacher(Bare(Own()), 'teacher', Bare(Own())).converted(images) is images
    with pytest.raises(ConfigError, match='the data preprocessors are Other there and Own here'):
        Teacher(Bare(Other()), 'teachers[0]', Bare(Own()))


# ---------------------------------------------------------------- what is wrong


def build(config: Config, teachers: Any, **settings: Any) -> nn.Module:
    return MODELS.build(dict(type='mmprune_ext.Distilled', student=config.model, teachers=teachers,
                             demo_inputs=(32, 32), data_preprocessor=config.data_preprocessor, **settings))


@pytest.fixture
def entry(dense_config_file, dense_checkpoint) -> dict[str, str]:
    return dict(config=str(dense_config_file), checkpoint=str(dense_checkpoint))


def test_what_is_missing_is_found_before_the_student_is_built(tiny_config, entry, pruned, tmp_path, monkeypatch):
    """It may be one that is pruned, and repaired, while it is built."""
    def built(*_: Any, **__: Any) -> None:
        raise AssertionError('the student was built')

    monkeypatch.setattr('mmprune_ext.distillation.distilled.build_architecture', built)
    compact = str(pruned / 'compact_config.py')
    moved = Config.fromfile(compact)
    moved.model.units = str(tmp_path / 'units.json')
    moved.dump(tmp_path / 'moved.py')
    for wrong, message in (
            ({}, r'no weights; give its checkpoint'),
            ({'checkpoint': 'missing.pth'}, r'teachers\[1\] .*missing.pth: no such file'),
            ({'checkpoint': str(tmp_path)}, r'teachers\[1\] .*is a folder'),
            ({'config': 'missing.py'}, r'teachers\[1\] .*config missing.py: no such file'),
            ({'config': compact, 'checkpoint': 'missing.pth'}, r'missing.pth: no such file'),
            ({'config': str(tmp_path / 'moved.py')}, r'model.units: .*units.json: no such file')):
        second = {'config': entry['config'], **wrong}
        with pytest.raises(PruningError, match=message):
            build(tiny_config(), [entry, second])
    missing = [dict(config='missing.py')]
    for teachers, settings in (([entry, dict(config=compact)], {}), (missing, dict(loss_weight=0)),
                               (missing, dict(loss_weight=0, maps=['neck'], maps_weight=0))):
        with pytest.raises(AssertionError, match='the student was built'):
            build(tiny_config(), teachers, **settings)
    with pytest.raises(PruningError, match='config missing.py: no such file'):
        build(tiny_config(), missing, loss_weight=0, maps=['neck'])


BAD = {
    'no list': (dict(config='a.py'), 'teachers should be a list of at least one'),
    'empty': ([], 'teachers should be a list of at least one'),
    'no entry': (['a.py'], r'teachers\[0\] should be dict\(config=PATH'),
    'missing config': ([dict(config='missing.py')], r'teachers\[0\] \(missing.py\): config missing.py: no such file'),
    'misspelt key': ([dict(config='a.py', checkpiont='b.pth')], 'no setting "checkpiont"; did you mean checkpoint?'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_entries(tiny_config, name):
    teachers, message = BAD[name]
    with pytest.raises(PruningError, match=message):
        build(tiny_config(), teachers)


SETTINGS = {
    'temperature 0': (dict(temperature=0), 'temperature should be a number above 0, but got 0'),
    'temperature of text': (dict(temperature='5'), "temperature should be a number above 0, but got '5'"),
    'negative weight': (dict(loss_weight=-1), 'loss_weight should be a number of at least 0, but got -1'),
    'no number': (dict(maps_weight=float('nan')), 'maps_weight should be a number of at least 0'),
    'misspelt map': (dict(maps=['nekc']), 'maps: ImageClassifier has no module "nekc"; did you mean neck?'),
    'misspelt head': (dict(outputs=['haed']), 'outputs: ImageClassifier has no module "haed"; did you mean head?'),
    'misspelt layer': (dict(maps=['backbone.layer5']), 'did you mean backbone.layer'),
    'nothing like it': (dict(maps=['xyz']), 'there are data_preprocessor, backbone, neck, head'),
    'one name': (dict(maps='neck'), "maps should be a list of names of modules, but got 'neck'"),
    'nothing': (dict(outputs=[]), 'outputs and maps are both empty'),
    'maps of no weight': (dict(outputs=[], maps=['neck'], maps_weight=0), 'outputs and maps are both empty'),
    'a map as a head': (dict(outputs=['backbone']), 'outputs: backbone is a CifarResNet and returned'),
    'unknown': (dict(weights=1), "unexpected keyword argument 'weights'"),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_bad_settings(tiny_config, entry, name):
    settings, message = SETTINGS[name]
    with pytest.raises((ConfigError, TypeError), match=message):
        build(tiny_config(), [entry], **settings)


def test_missing_and_other_weights(tiny_config, entry, pruned, tmp_path):
    with pytest.raises(CheckpointError, match=r'teachers\[1\] .*missing.pth: no such file'):
        build(tiny_config(), [entry, dict(entry, checkpoint='missing.pth')])
    with pytest.raises(CheckpointError, match=r'teachers\[0\] .*compact.pth does not fit ImageClassifier'):
        build(tiny_config(), [dict(entry, checkpoint=str(pruned / 'compact.pth'))])
    with pytest.raises(ConfigError, match='no weights; give its checkpoint'):
        build(tiny_config(), [dict(config=entry['config'])])


def test_another_number_of_classes(tiny_config, entry):
    config = tiny_config({'model.head.num_classes': 12})
    with pytest.raises(ConfigError, match=r'head: has \(1, 10\), the student has \(1, 12\); the numbers of channels '
                       r'\(classes, keypoints, anchors\) differ'):
        build(config, [entry])


def test_other_maps(tiny_config, entry):
    config = tiny_config()
    config.model.backbone = dict(type='ResNet', depth=18, out_indices=(2, 3))
    config.model.head.in_channels = 512
    with pytest.raises(ConfigError, match=r'backbone: has \(1, 32, 8, 8\), the student has \(1, 256, 2, 2\), '
                       r'\(1, 512, 1, 1\); they should be as many'):
        build(config, [entry], maps=['backbone'])


def test_of_a_pruning_run(tiny_config, pruning_run):
    with pytest.raises(ConfigError, match='its model is that of a mmprune_ext.L1Norm run; export it'):
        build(tiny_config(), [dict(config=str(pruning_run / 'run.py'), checkpoint=str(pruning_run / 'epoch_1.pth'))])


def test_images_of_another_kind(tiny_config, entry, tmp_path):
    """A teacher of grey images."""
    config = tiny_config()
    config.model.backbone = dict(type='ResNet', depth=18, in_channels=1)
    config.model.head.in_channels = 512
    config.dump(tmp_path / 'grey.py')
    weights = build_architecture(config.model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'grey.pth')
    with pytest.raises(ConfigError, match=r"grey.py\): does not run on the student's demo inputs: .*in layer "
                       r'"backbone.conv1"'):
        build(tiny_config(), [entry, dict(config=str(tmp_path / 'grey.py'), checkpoint=str(tmp_path / 'grey.pth'))])


def test_settings_of_the_teachers_own_preprocessor(tiny_config, entry):
    """Its data came in another order of channels than the run's does."""
    plain, changed = (build(tiny_config(), [given]).distillation.teachers[0]
                      for given in (entry, dict(entry, data_preprocessor=dict(to_rgb=False))))
    images = torch.rand(1, 3, 4, 4)
    assert plain.converted(images) is images
    torch.testing.assert_close(changed.converted(images), images.flip(1), rtol=0, atol=1e-5)
