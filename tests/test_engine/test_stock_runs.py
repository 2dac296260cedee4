"""Stock configs of the libraries, a few iterations dense and as pruning runs: what reaches into the model works.

Hooks and constructors of the libraries find parts of a model by attribute and parameters by name; where they do not
find them, they fail or, worse, do nothing.
"""
from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmprune_ext.registry import MODELS
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.settings.reading import read_config
from tests.in_process import own_globals
from tests.scenes import scenes_in

ROOT = Path(__file__).resolve().parents[2]
METHODS = {
    'L1': dict(type='mmprune_ext.L1Norm', target_pruning_ratio=0.5, from_scratch=True),
    'CHIP': dict(type='mmprune_ext.CHIP', calibration=dict(num_batches=1), target_pruning_ratio=0.5, from_scratch=True),
    'ChipNet': dict(type='mmprune_ext.ChipNet', budget=dict(channels=0.5)),
    'StripeWise': dict(type='mmprune_ext.StripeWise'),
    'DCFF': dict(type='mmprune_ext.DCFF', target_pruning_ratio=0.5),
}
# A ConvNeXt of the depth of the stock ones, and of their names, a quarter as wide.
SMALL = dict(depths=[3, 3, 9, 3], channels=[24, 48, 96, 192])

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _fresh_globals() -> Iterator[None]:
    """Loggers, visualizers and default scope of each test's runs are its own."""
    with own_globals():
        yield


@pytest.fixture(autouse=True, scope='module')
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with scenes_in(tmp_path_factory.mktemp('data'), train=8, val=5), pytest.MonkeyPatch.context() as patch:
        # Configs are formatted with every dump, which takes longer than these runs.
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield


def short(config: Config, iterations: int | None = 2) -> Config:
    """Make a run of a few iterations that validates nothing and writes one checkpoint."""
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg', 'test_dataloader', 'test_evaluator', 'test_cfg'):
        config[key] = None
    if iterations is not None:
        config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations)
    config.param_scheduler = []
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=2, by_epoch=iterations is None)
    config.default_hooks.logger = dict(type='LoggerHook', interval=1)
    config.randomness = dict(seed=0)
    # Weights that the libraries would download.
    config.load_from = None
    for part in (config.model.get('backbone') or {}, config.model):
        part.pop('init_cfg', None)
    return config


def trained(config: Config, method: str | None, folder: Path) -> Runner:
    """Run a config as it is, or as a pruning run, as tools/train.py does it."""
    config = copy.deepcopy(config)
    config.work_dir = str(folder / str(method))
    config.experiment_name = uuid.uuid4().hex
    if method is not None:
        settings = dict(METHODS[method], architecture=config.model)
        if method in ('ChipNet', 'DCFF'):
            settings['by_epoch'] = config.train_cfg.get('by_epoch', False)
        config.model = settings
        prepare_pruning(config)
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def rates(runner: Runner) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay by parameter."""
    names = {id(value): name for name, value in runner.model.named_parameters()}
    return {names[id(value)]: (group['lr'], group['weight_decay'])
            for group in runner.optim_wrapper.optimizer.param_groups for value in group['params']
            if not names[id(value)].startswith('channel_gates.') and not names[id(value)].endswith('.skeleton')}


@pytest.fixture(scope='module')
def dense_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config, str], Runner]:
    """Return a function that runs a config dense, once for all methods."""
    runners: dict[str, Runner] = {}

    def run(config: Config, name: str) -> Runner:
        if name not in runners:
            runners[name] = trained(config, None, tmp_path_factory.mktemp(name))
        return runners[name]
    return run


def parameter_count(runner: Runner) -> int:
    """Return the parameters of the compact model; in an epoch of a few iterations no stripe dies."""
    return sum(value.numel() for value in runner.model.export_model().parameters())


@pytest.fixture
def digits_run(digits: Path) -> Callable[..., Config]:
    """Return a function that gives a stock classification config the digits as data."""
    def make(name: str, **options: Any) -> Config:
        config = short(read_config(name, options))
        tiny = Config.fromfile(ROOT / 'tests' / 'data' / 'digits_tiny.py')
        config.train_dataloader = tiny.train_dataloader
        config.train_dataloader.batch_size = 4
        config.train_dataloader.dataset.update(data_root=str(digits), indices=None)
        config.model.head.num_classes = config.data_preprocessor.num_classes = 10
        config.model.pop('train_cfg', None)  # mixup and the like, for 1,000 classes
        config.model.head.loss = dict(type='CrossEntropyLoss')
        return config
    return make


@pytest.fixture
def scenes_run() -> Callable[[str], Config]:
    """Return a function that gives a stock detection config the drawn scenes as data."""
    def make(name: str) -> Config:
        config = short(read_config(name))
        scenes = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets' / 'scenes_detection.py')
        config.train_dataloader = scenes.train_dataloader
        config.train_dataloader.update(batch_size=2, num_workers=0)
        return config
    return make


# ---------------------------------------------------------------- parameters by name


@pytest.mark.parametrize('method', METHODS)
def test_layer_wise_rates_of_mmpretrain(digits_run, dense_of, tmp_path, method):
    config = digits_run('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
                        **{'optim_wrapper.constructor': 'LearningRateDecayOptimWrapperConstructor',
                           'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.7,
                           'model.head.in_channels': SMALL['channels'][-1],
                           # DCFF mixes the filters of convolutions.
                           'model.backbone.linear_pw_conv': False})
    config.model.backbone.arch = SMALL
    dense, run = dense_of(config, 'convnext'), trained(config, method, tmp_path)
    want = rates(dense)
    assert len({lr for lr, _ in want.values()}) >= 6
    assert rates(run) == want
    count = sum(value.numel() for value in dense.model.parameters())
    assert method == 'StripeWise' or parameter_count(run) < 0.8 * count


@pytest.mark.parametrize('method', METHODS)
def test_layer_wise_rates_of_mmdet(scenes_run, dense_of, tmp_path, method):
    config = scenes_run('mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py')
    model = config.model
    model.backbone.update(arch=SMALL, linear_pw_conv=False)
    model.neck.update(in_channels=SMALL['channels'], out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.roi_head.bbox_roi_extractor.out_channels = model.roi_head.mask_roi_extractor.out_channels = 16
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=6)
    model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=6)
    config.optim_wrapper.type = 'OptimWrapper'  # mixed precision needs an accelerator
    dense, run = dense_of(config, 'mask_rcnn'), trained(config, method, tmp_path)
    want = rates(dense)
    assert len({lr for lr, _ in want.values()}) >= 6
    assert rates(run) == want


@pytest.mark.parametrize('method', METHODS)
def test_custom_keys(digits_run, dense_of, tmp_path, method):
    config = digits_run('mmpretrain::resnet/resnet18_8xb32_in1k.py', **{
        'optim_wrapper.paramwise_cfg': dict(custom_keys={
            'backbone.layer4': dict(lr_mult=0.5), 'backbone': dict(lr_mult=0.1, decay_mult=0.0)}),
        'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8, 'model.head.in_channels': 64})
    dense, run = dense_of(config, 'keys'), trained(config, method, tmp_path)
    want = rates(dense)
    assert {round(lr / want['head.fc.weight'][0], 6) for lr, _ in want.values()} == {1.0, 0.5, 0.1}
    assert rates(run) == want


def test_layer_wise_rates_of_mmpose(tmp_path):
    """Where the name of a parameter is not known, mmpose gives it the rate of the last layer."""
    config = short(read_config('mmpose::body_2d_keypoint/topdown_heatmap/coco/'
                               'td-hm_ViTPose-small_8xb64-210e_coco-256x192.py'))
    found = []
    for pruned in (False, True):
        model = copy.deepcopy(config.model)
        if pruned:
            model = dict(METHODS['L1'], architecture=model,
                         mutator=dict(type='mmprune_ext.L1Mutator', demo_inputs=[256, 192]))
        built = MODELS.build(model)
        optimizer = Runner.build_optim_wrapper(
            type('Run', (), dict(model=built))(), config.optim_wrapper.to_dict()).optimizer
        names = {id(value): name for name, value in built.named_parameters()}
        found.append({names[id(value)]: (group['lr'], group['weight_decay'])
                      for group in optimizer.param_groups for value in group['params']})
    assert len({lr for lr, _ in found[0].values()}) >= 10
    assert found[1] == found[0]


# ---------------------------------------------------------------- parts by attribute


@pytest.fixture
def yolox(scenes_run) -> Config:
    """YOLOX-tiny with its own hooks, mosaic and mixup; the last of two epochs switches both off."""
    stock = read_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    pipeline = copy.deepcopy(stock.train_dataloader.dataset.pipeline)
    for transform in pipeline:
        for key in ('img_scale', 'scale'):
            if key in transform:
                transform[key] = (64, 64)
        if transform.type == 'RandomAffine':
            transform.border = (-32, -32)
    config = scenes_run('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    images = config.train_dataloader.dataset
    images.pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    config.train_dataloader.dataset = dict(type='MultiImageMixDataset', dataset=images, pipeline=pipeline)
    config.train_dataloader.batch_size = 4
    config.train_cfg = dict(by_epoch=True, max_epochs=2)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    config.model.data_preprocessor.batch_augments = None
    config.model.bbox_head.num_classes = 6
    for hook in config.custom_hooks:
        if hook.type == 'YOLOXModeSwitchHook':
            hook.num_last_epochs = 0  # one epoch earlier than it says
    return config


@pytest.mark.parametrize('method', METHODS)
def test_mode_switch_and_average_of_yolox(yolox, dense_of, tmp_path, method):
    dense, run = dense_of(yolox, 'yolox'), trained(yolox, method, tmp_path)
    for runner in (dense, run):
        assert runner.model.bbox_head.use_l1
        # Logged in the second epoch alone: the switch came in the middle of the run.
        logged = runner.message_hub.get_scalar('train/loss_l1')
        assert len(logged._log_history) == len(runner.train_dataloader)
        assert runner.train_dataloader.dataset._skip_type_keys == ('Mosaic', 'RandomAffine', 'MixUp')
    stored = [torch.load(f'{runner.work_dir}/epoch_2.pth', weights_only=False) for runner in (dense, run)]
    own = [key for key in stored[1]['state_dict']
           if not key.endswith(('.fusion', '.chosen', '.skeleton')) and not key.startswith('channel_gates.')]
    assert own == list(stored[0]['state_dict'])
    average = [key for key in stored[1]['ema_state_dict']
               if not key.endswith(('.fusion', '.chosen', '.skeleton')) and not key.startswith('module.channel_gates.')]
    assert average == list(stored[0]['ema_state_dict'])
    key = 'backbone.stage1.0.conv.weight'
    assert not torch.equal(stored[1]['state_dict'][key], stored[1]['ema_state_dict'][f'module.{key}'])


@pytest.mark.parametrize('method', METHODS)
def test_adaptive_margins(digits_run, dense_of, tmp_path, method):
    config = digits_run('mmpretrain::resnet/resnet18_8xb32_in1k.py', **{
        'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8})
    config.model.head = dict(type='ArcFaceClsHead', num_classes=10, in_channels=64,
                             loss=dict(type='CrossEntropyLoss'))
    # Of each class another number: with equal ones all margins are.
    config.train_dataloader.dataset.indices = [i for i in range(1400) if i % 7 < 1 + i // 200]
    config.custom_hooks = [dict(type='SetAdaptiveMarginsHook', margin_min=0.1, margin_max=0.4)]
    dense, run = dense_of(config, 'arcface'), trained(config, method, tmp_path)
    margins = [runner.model.head.margins for runner in (dense, run)]
    assert len(set(margins[0].tolist())) > 3
    torch.testing.assert_close(margins[1], margins[0])


@pytest.mark.parametrize('method', METHODS)
def test_switched_recipe(digits_run, tmp_path, method):
    """mmpretrain's SwitchRecipeHook gives the head another loss in the middle of the run."""
    config = digits_run('mmpretrain::resnet/resnet18_8xb32_in1k.py', **{
        'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8, 'model.head.in_channels': 64})
    config.train_cfg = dict(by_epoch=True, max_epochs=2)
    config.train_dataloader.dataset.indices = list(range(0, 1437, 120))
    config.custom_hooks = [dict(type='SwitchRecipeHook', schedule=[
        dict(action_epoch=2, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=10))])]
    runner = trained(config, method, tmp_path)
    assert type(runner.model.head.loss_module).__name__ == 'LabelSmoothLoss'
