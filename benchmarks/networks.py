"""The networks that benchmarks and docs/prunable.md report on, by the configs they come from.

Names with "::" are configs that mmpretrain ships; the others lie in this repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mmengine.config import Config

from mmprune_ext.engine import cli

ROOT = Path(__file__).resolve().parents[1]

ZOO: Mapping[str, str] = MappingProxyType({
    'ResNet-18': 'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'ResNet-50': 'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'VGG-16': 'mmpretrain::vgg/vgg16_8xb32_in1k.py',
    'VGG-16-BN': 'mmpretrain::vgg/vgg16bn_8xb32_in1k.py',
    'MobileNetV2': 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'ShuffleNetV2': 'mmpretrain::shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py',
    'DenseNet-121': 'mmpretrain::densenet/densenet121_4xb256_in1k.py',
    'ResNeXt-50': 'mmpretrain::resnext/resnext50-32x4d_8xb32_in1k.py',
    'SE-ResNet-50': 'mmpretrain::seresnet/seresnet50_8xb32_in1k.py',
    'RegNetX-400MF': 'mmpretrain::regnet/regnetx-400mf_8xb128_in1k.py',
    'EfficientNet-B0': 'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py',
    'HRNet-W18': 'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py',
    'Res2Net-50': 'mmpretrain::res2net/res2net50-w14-s8_8xb32_in1k.py',
    'ResNeSt-50': 'mmpretrain::resnest/resnest50_32xb64_in1k.py',
    'CSPDarkNet-50': 'mmpretrain::cspnet/cspdarknet50_8xb32_in1k.py',
    'ConvNeXt-T': 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
    'ViT-S': 'mmpretrain::deit/deit-small_4xb256_in1k.py',
    'Swin-T': 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
})
CIFAR: Mapping[str, str] = MappingProxyType({
    'ResNet-20 (CIFAR)': 'configs/cifar/resnet20_cifar10.py',
    'ResNet-32 (CIFAR)': 'configs/cifar/resnet32_cifar10.py',
    'ResNet-44 (CIFAR)': 'configs/cifar/resnet44_cifar10.py',
    'ResNet-56 (CIFAR)': 'configs/cifar/resnet56_cifar10.py',
    'ResNet-110 (CIFAR)': 'configs/cifar/resnet110_cifar10.py',
    'PreResNet-110 (CIFAR)': 'configs/cifar/preresnet110_cifar10.py',
    'WRN-28-10 (CIFAR)': 'configs/cifar/wrn28_10_cifar10.py',
    'VGG-16-BN (CIFAR)': 'configs/cifar/vgg16bn_cifar10.py',
})
NETWORKS: Mapping[str, str] = MappingProxyType({**ZOO, **CIFAR})


def read(name: str) -> Config:
    """Return the config of a network."""
    path = NETWORKS[name]
    return cli.read_config(path if '::' in path else str(ROOT / path))


def select(wanted: list[str] | None) -> list[str]:
    """Return the names of the networks whose name begins with one of ``wanted``, or all."""
    if wanted is None:
        return list(NETWORKS)
    unknown = [w for w in wanted if not any(n.lower().startswith(w.lower()) for n in NETWORKS)]
    if unknown:
        cli.fail(f'unknown network "{unknown[0]}"; choose from {", ".join(NETWORKS)}')
    return [n for n in NETWORKS if any(n.lower().startswith(w.lower()) for w in wanted)]
