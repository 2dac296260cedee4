"""Equivalence and a real training step on the networks of mmpretrain's zoo and of the papers."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune_ext.units import Reason, slim, trace_units
from tests.test_units.reference import assert_close, choose, outputs_of, silenced, training_step
from tests.test_units.toy_base import randomise

mmpretrain = pytest.importorskip('mmpretrain')
pytestmark = pytest.mark.e2e

# Config, image size, units and channels of the backbone that can be pruned. The numbers are worked
# out from the architectures by hand; None where that would only repeat the program.
ZOO = {
    # 8 inner convolutions, 4 stages (the stem belongs to the first): 960 + 2 * 960
    'ResNet-18': ('resnet/resnet18_8xb32_in1k.py', 64, 12, 2880),
    # 16 blocks with 2 inner convolutions, 4 stages, stem: 64 + 3840 + 2 * 3776
    'ResNet-50': ('resnet/resnet50_8xb32_in1k.py', 64, 37, 11456),
    # 13 convolutions with 4224 channels, 2 linear layers with 4096
    'VGG-16': ('vgg/vgg16_8xb32_in1k.py', 224, 15, 12416),
    'VGG-16-BN': ('vgg/vgg16bn_8xb32_in1k.py', 224, 15, 12416),
    # stem, 7 stage outputs (712), 16 hidden (7104), last 1280
    'MobileNetV2': ('mobilenet_v2/mobilenet-v2_8xb32_in1k.py', 64, 25, 9128),
    'ShuffleNetV2': ('shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py', 64, None, None),
    # stem, 58 * (128 + 32), 3 transitions (128, 256, 512)
    'DenseNet-121': ('densenet/densenet121_4xb256_in1k.py', 64, 120, 10240),
    # as ResNet-50, but the 32 groups of both inner convolutions are tied: 3904 + 2 * 236
    'ResNeXt-50': ('resnext/resnext50-32x4d_8xb32_in1k.py', 64, 37, 4376),
    # as ResNet-50 and 16 squeezes to 1/16 of the block's width: 944
    'SE-ResNet-50': ('seresnet/seresnet50_8xb32_in1k.py', 64, 53, 12400),
    # stem 32, stages 32 + 64 + 160 + 384, 44 inner ones of 16 (the width of a group)
    'RegNetX': ('regnet/regnetx-400mf_8xb128_in1k.py', 64, 49, 1376),
    # stem 32, 7 outputs (784), 15 hidden (8928), 16 squeezes (380), last 1280
    'EfficientNet-B0': ('efficientnet/efficientnet-b0_8xb32_in1k.py', 64, 40, 11404),
    'HRNet-W18': ('hrnet/hrnet-w18_4xb32_in1k.py', 64, None, None),
    'Res2Net-50': ('res2net/res2net50-w14-s8_8xb32_in1k.py', 64, None, None),
    'ResNeSt-50': ('resnest/resnest50_32xb64_in1k.py', 64, None, None),
    'CSPDarkNet-50': ('cspnet/cspdarknet50_8xb32_in1k.py', 64, None, None),
    # 4 stages (1440), 18 hidden of 4 times their stage
    'ConvNeXt-T': ('convnext/convnext-tiny_32xb128_in1k.py', 64, 22, 27936),
    # the embedding, 12 hidden of 1536, and 12 heads of 64: one place in all of them, of queries, keys and values
    'ViT-S': ('deit/deit-small_4xb256_in1k.py', 224, 25, 384 + 12 * 1536 + 12 * 64),
    # 4 stages of 96, 192, 384, 768; 12 blocks with heads of 32 and hidden layers of 4 times their stage (2, 2, 6, 2)
    'Swin-T': ('swin_transformer/swin-tiny_16xb64_in1k.py', 224, 28, 1440 + 12 * 32 + 4 * (192 + 384 + 2304 + 1536)),
}
# The papers' networks, from this project's configs: image size, units and channels.
CIFAR = {
    # stages 16 + 32 + 64 (the stem belongs to the first), n inner convolutions of each
    'resnet20_cifar10': (32, 12, 112 * 4),
    'resnet32_cifar10': (32, 18, 112 * 6),
    'resnet44_cifar10': (32, 24, 112 * 8),
    'resnet56_cifar10': (32, 30, 112 * 10),
    # shortcuts with weights tie the same channels
    'resnet56_cifar10 option B': (32, 30, 112 * 10),
    'resnet110_cifar10': (16, 57, 112 * 19),
    'preresnet110_cifar10': (16, 57, 112 * 19),
    # stem 16, stages 160 + 320 + 640, 4 inner ones of each
    'wrn28_10_cifar10': (16, 16, 16 + 1120 * 5),
    # 13 convolutions
    'vgg16bn_cifar10': (32, 13, 4224),
    'vgg16_cifar10': (32, 13, 4224),
    # stem; outputs of the 9 modules 256 + 480 + 3 * 512 + 528 + 2 * 832 + 1024; inner convolutions
    # 144 + 256 + 160 + 200 + 216 + 240 + 2 * 320 + 368
    'googlenet_cifar10': (16, 64, 192 + 5488 + 2224),
}
ROOT = Path(__file__).resolve().parents[2]


def zoo_model(name):
    """Build a network from the config that mmpretrain ships."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS
    init_default_scope('mmpretrain')
    folder = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
    config = Config.fromfile(folder / ZOO[name][0]).model
    config.pop('train_cfg', None)  # mixup is of no concern here
    config.data_preprocessor = dict(mean=[120.] * 3, std=[60.] * 3, num_classes=1000)
    return MODELS.build(config)


def prepared(model, size):
    """Make every layer's effect visible, and batch statistics fit the activations."""
    randomise(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for module in model.modules():
        module.training = False
    for norm in norms:
        norm.training, norm.momentum = True, 1.
    with torch.no_grad():
        model(torch.randn(4, 3, size, size), None, mode='tensor')
    for norm in norms:
        norm.training, norm.momentum = False, 0.1
    return model


def samples(count):
    """Return data samples with ground truth."""
    from mmpretrain.structures import DataSample
    return [DataSample().set_gt_label(i) for i in range(count)]


@pytest.mark.parametrize('name', ZOO)
def test_zoo(name):
    _, size, count, channels = ZOO[name]
    torch.manual_seed(0)
    model = prepared(zoo_model(name), size)
    units = trace_units(model, (size, size))
    prunable = units.prunable.values()
    if count is not None:
        assert (len(prunable), sum(u.num_channels for u in prunable)) == (count, channels)
    assert prunable
    assert all(unit.name.startswith('backbone.') for unit in prunable)
    assert units['head.fc' if 'head.fc' in units else list(units)[-1]].reason is Reason.OUTPUT
    check(model, units, size)


def check(model, units, size):
    """Compare slimmed with silenced, then train the slimmed model for one step."""
    choose(units, 1, fewest=2)
    x = torch.randn(2, 3, size, size)
    dense = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        want = outputs_of(silenced(model, units)(x, None, mode='tensor'))
        slimmed = slim(copy.deepcopy(model), units)
        del model
        assert_close(outputs_of(slimmed(x, None, mode='tensor')), want, 1e-4)
    assert sum(p.numel() for p in slimmed.parameters()) < dense
    for module in slimmed.modules():
        module.training = True
    losses = slimmed(x, samples(2), mode='loss')
    training_step(slimmed, sum(value for key, value in losses.items() if 'loss' in key))


@pytest.mark.parametrize('name', CIFAR)
def test_cifar(name):
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    import mmprune_ext.models  # noqa: F401  registers the backbones
    init_default_scope('mmpretrain')
    size, count, channels = CIFAR[name]
    torch.manual_seed(0)
    name, _, option = name.partition(' option ')
    config = Config.fromfile(ROOT / 'configs' / 'cifar' / f'{name}.py')
    if option:
        config.model.backbone.shortcut = option
    model = prepared(MODELS.build(config.model), size)
    units = trace_units(model, (size, size))
    prunable = units.prunable.values()
    assert (len(prunable), sum(u.num_channels for u in prunable)) == (count, channels)
    check(model, units, size)
