"""Sizes, names and gradients of the CIFAR networks."""
import pytest
import torch
from mmengine.registry import init_default_scope

from mmprune_ext.models import CifarGoogLeNet, CifarPreResNet, CifarResNet, CifarVGG, WideResNet
from mmprune_ext.registry import MODELS

GAP = dict(type='mmpretrain.GlobalAveragePooling')
HIDDEN = dict(type='mmpretrain.LinearNeck', in_channels=512, out_channels=512, gap_dim=0,
              norm_cfg=dict(type='BN1d'), act_cfg=dict(type='ReLU'))
# Parameters of the whole classifier with ten classes; counted from independent builds.
COUNTS = {
    'CHIP CIFAR-10 resnet56 dense': (dict(type='CifarResNet', depth=56), GAP, 64, 853018),
    'CHIP CIFAR-10 resnet110 dense': (dict(type='CifarResNet', depth=110), GAP, 64, 1727962),
    'SWP resnet56 dense': (dict(type='CifarResNet', depth=56, shortcut='B'), GAP, 64, 855770),
    'CHIP CIFAR-10 VGG-16-BN dense': (dict(type='CifarVGG', depth=16), HIDDEN, 512, 14991946),
    'SWP vgg16 dense': (dict(type='CifarVGG', depth=16, conv_bias=False, last_pool='max'), GAP,
                        512, 14724042),
    # DCFF prints 457.22M FLOPs and 2.08M parameters left of it, reductions of 70.11% and 66.28%; its
    # compact forms are exact in tests/test_mutators/test_sparsity_layouts.py.
    'googlenet': (dict(type='CifarGoogLeNet'), GAP, 1024, 6166250),
    # PreResNet-110 has the sizes of ResNet-110: the stem's BN of 16 moves to the first block, and
    # in stages 2 and 3 the first BN shrinks to the input's width and the last one adds the rest.
    'preresnet110': (dict(type='CifarPreResNet', depth=110), GAP, 64, 1727962),
    # arXiv 1605.07146, table 4: 36.5M.
    'wrn28_10': (dict(type='WideResNet', depth=28, widen_factor=10), GAP, 640, 36479194),
}
BACKBONES = [
    (CifarResNet(20), [(16, 32), (32, 16), (64, 8)]),
    (CifarResNet(8, shortcut='B', base_channels=4), [(4, 32), (8, 16), (16, 8)]),
    (CifarPreResNet(14), [(16, 32), (32, 16), (64, 8)]),
    (CifarPreResNet(8, shortcut='B'), [(16, 32), (32, 16), (64, 8)]),
    (WideResNet(10, widen_factor=2, dropout=0.1), [(32, 32), (64, 16), (128, 8)]),
    (CifarGoogLeNet(), [(480, 32), (832, 16), (1024, 8)]),
    (CifarVGG(11), [(64, 16), (128, 8), (256, 4), (512, 2), (512, 1)]),
    (CifarVGG(11, batch_norm=False, last_pool='max'),
     [(64, 16), (128, 8), (256, 4), (512, 2), (512, 1)]),
]


@pytest.mark.parametrize('row', COUNTS)
def test_parameters_of_the_published_networks(row):
    backbone, neck, width, expected = COUNTS[row]
    init_default_scope('mmpretrain')
    with torch.device('meta'):  # counts need no memory
        model = MODELS.build(dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(backbone, type=f'mmprune_ext.{backbone["type"]}'), neck=neck,
            head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=width)))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(('backbone', 'stages'), BACKBONES)
def test_stage_outputs_and_gradients(backbone, stages):
    last = len(stages) - 1
    x = torch.randn(2, 3, 32, 32)
    backbone.train()
    output, = backbone(x)
    assert output.shape == (2, stages[-1][0], stages[-1][1], stages[-1][1])
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    backbone.out_indices = tuple(range(last + 1))
    assert [out.shape for out in backbone(x)] == [(2, c, s, s) for c, s in stages]


def test_resnet_is_the_published_one():
    """Option A by the usual formula, block by block."""
    torch.manual_seed(0)
    net = CifarResNet(8).eval()
    net.init_weights()
    x = torch.randn(2, 3, 32, 32)
    out = torch.relu(net.bn1(net.conv1(x)))
    for stage in (net.layer1, net.layer2, net.layer3):
        block = stage[0]
        inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(out)))))
        if stage is not net.layer1:
            quarter = inner.shape[1] // 4
            out = torch.nn.functional.pad(out[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        out = torch.relu(inner + out)
    torch.testing.assert_close(net(x)[0], out)


def test_wide_shortcut_reads_the_activated_input_and_preresnet_the_raw_one():
    torch.manual_seed(0)
    for net, activated in ((WideResNet(10, widen_factor=2), True),
                           (CifarPreResNet(8, shortcut='B'), False)):
        block = net.eval().layer2[0]
        torch.nn.init.zeros_(block.conv2.weight)
        x = torch.randn(1, block.conv1.in_channels, 8, 8)
        read = torch.relu(block.bn1(x)) if activated else x
        torch.testing.assert_close(block(x), block.downsample(read))


def test_names_of_layers():
    convolutions = [name for name, module in CifarResNet(20, shortcut='B').named_modules()
                    if isinstance(module, torch.nn.Conv2d)]
    assert convolutions[:3] == ['conv1', 'layer1.0.conv1', 'layer1.0.conv2']
    assert 'layer2.0.downsample.0' in convolutions
    vgg = [name for name, module in CifarVGG(16).named_modules()
           if isinstance(module, torch.nn.Conv2d)]
    assert vgg == [f'features.conv{i}' for i in (0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16)]


def test_init_weights():
    torch.manual_seed(0)
    net = CifarResNet(20)
    net.init_weights()
    weight = net.layer3[2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert torch.equal(net.bn1.weight, torch.ones(16))


@pytest.mark.parametrize(('build', 'message'), [
    (lambda: CifarResNet(21), r'depth must be 6n \+ 2 .* got 21'),
    (lambda: CifarResNet(2), r'depth must be 6n \+ 2 .* got 2'),
    (lambda: WideResNet(26), r'depth must be 6n \+ 4 .* got 26'),
    (lambda: WideResNet(28, widen_factor=0), 'widen_factor must be >= 1, got 0'),
    (lambda: CifarResNet(20, shortcut='C'), r"shortcut must be one of \['A', 'B'\], got 'C'"),
    (lambda: CifarResNet(20, out_indices=(3, )), r'stages in \[0, 3\), got \(3,\)'),
    (lambda: CifarVGG(12), r'depth must be one of \[11, 13, 16, 19\], got 12'),
    (lambda: CifarVGG(16, last_pool='none'), r"last_pool must be one of \['avg', 'max'\]"),
    (lambda: CifarVGG(16, conv_bias=False, batch_norm=False), 'need conv_bias=True'),
])
def test_bad_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()
