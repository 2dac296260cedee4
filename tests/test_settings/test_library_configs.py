"""Configs that the task libraries ship, named by their library."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmprune_ext.errors import ConfigError
from mmprune_ext.settings import completion, libraries, reading
from mmprune_ext.units.demo_inputs import image_size_from_config, tracing_size
from mmprune_ext.workflows.pruning import trace_config

POSE = 'body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'


@pytest.mark.e2e
@pytest.mark.parametrize(('path', 'prunable', 'channels'), [
    # As worked out in tests/test_units/test_zoo.py; ResNet-V1c has one more convolution of 32 twice.
    ('mmpretrain::resnet/resnet18_8xb32_in1k.py', 12, 2880),
    ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', 12, 2880),
    ('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', 39, 11456 + 64),
    (f'mmpose::{POSE}', 37, 11456),
])
def test_stock_configs_are_traced(path, prunable, channels):
    pytest.importorskip(path.split('::')[0])
    config = reading.read_config(path)
    units = trace_config(config)
    assert len(units.prunable) == prunable
    assert sum(unit.num_channels for unit in units.prunable.values()) == channels


@pytest.mark.parametrize('library', ['mmpretrain', 'mmdet', 'mmseg', 'mmpose'])
def test_library_configs_as_base(library, tmp_path, monkeypatch):
    """mmengine looks for "mmsegmentation", whatever distribution mmseg came with."""
    pytest.importorskip(library)
    from mmengine.config import utils
    monkeypatch.setitem(utils.MODULE2PACKAGE, library, 'of-another-name')
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{library}::_base_/default_runtime.py'\nmodel = dict(type='Any')\n")
    assert reading.read_config(str(config)).default_scope == library


@pytest.mark.parametrize('use', ['', 'model = _base_.model', 'model = {{_base_.model}}'])
def test_own_configs_as_base(use, tmp_path):
    """Names in them are those of the task's library, though mmengine says that they are this package's."""
    mmpretrain = pytest.importorskip('mmpretrain')
    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = 'mmprune_ext::cifar/resnet20_cifar10.py'\n{use}\n")
    config = reading.read_config(str(path))
    assert isinstance(MODELS.build(config.model), mmpretrain.models.ImageClassifier)
    assert "_scope_='mmprune_ext'" not in repr(config).replace(' ', '').replace(':', '=')
    assert config.train_dataloader == reading.read_config('mmprune_ext::cifar/resnet20_cifar10.py').train_dataloader


def test_own_scope_of_a_users_own_config_stays(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text("model = dict(type='L1Norm', _scope_='mmprune_ext')\n")
    assert reading.read_config(str(path)).model._scope_ == 'mmprune_ext'


def test_a_file_that_is_not_shipped():
    with pytest.raises(ConfigError, match=r'mmprune_ext/\.mim/tools/none\.py: no such file'):
        libraries.shipped('tools/none.py')


@pytest.mark.e2e
@pytest.mark.parametrize(('path', 'channels'), [
    ('td-reg_res50_rle-8xb64-210e_coco-256x192.py', 11456),  # names its keypoints joints
])
def test_regression_of_keypoints_is_traced(path, channels):
    pytest.importorskip('mmpose')
    config = reading.read_config(f'mmpose::body_2d_keypoint/topdown_regression/coco/{path}')
    units = trace_config(config)
    assert sum(unit.num_channels for unit in units.prunable.values()) == channels


@pytest.mark.parametrize(('path', 'message'), [
    ('mmengine::none.py', 'config mmengine::none.py: no such file'),
    ('no_such_library::x.py', 'library "no_such_library" is not installed'),
])
def test_library_configs_that_do_not_exist(path, message):
    with pytest.raises(ConfigError, match=message):
        reading.read_config(path)


def detection_config(scope, size):
    """Return a config whose test pipeline resizes to (width, height) ``size``."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=size, keep_ratio=True)]
    return dict(default_scope=scope, test_dataloader=dict(dataset=dict(pipeline=pipeline)))


def test_detectors_are_traced_on_small_images():
    config = detection_config('mmdet', (1333, 800))
    assert image_size_from_config(config) == (800, 1333)
    # 320 / 1333 of each side, in multiples of 32
    assert tracing_size(config) == (192, 320)
    assert tracing_size(detection_config('mmdet', (96, 64))) == (64, 96)
    # SSD300's last layers would have nothing left of a smaller image
    assert tracing_size(detection_config('mmdet', (300, 300))) == (300, 300)
    assert tracing_size(detection_config('mmpretrain', (1333, 800))) == (800, 1333)


def test_a_pruning_run_gets_its_mutator_and_hooks():
    config = Config(dict(
        detection_config('mmpretrain', (48, 32)),
        model=dict(type='mmprune_ext.L1Norm', architecture=dict(type='ImageClassifier')),
        custom_hooks=[dict(type='EMAHook'), dict(type='mmprune_ext.EpochSeedHook')]))
    completion.prepare_pruning(config)
    assert config.model.mutator == dict(type='mmprune_ext.L1Mutator', demo_inputs=[32, 48])
    assert [hook.type for hook in config.custom_hooks] == [
        'EMAHook', 'mmprune_ext.EpochSeedHook', 'mmprune_ext.PruningHook']
    completion.prepare_pruning(config)
    assert len(config.custom_hooks) == 3


def test_a_config_that_does_not_say_its_scope():
    pytest.importorskip('mmpretrain')
    config = reading.read_config('mmpretrain::dinov2/vit-small-p14_dinov2-pre_headless.py')
    assert config.default_scope == 'mmpretrain' and DefaultScope.get_current_instance().scope_name == 'mmpretrain'
