"""The CIFAR networks of the pruning papers, as backbones in the style of mmpretrain."""
from .cifar_preresnet import CifarPreResNet, WideResNet
from .cifar_resnet import CifarResNet
from .cifar_vgg import CifarVGG

__all__ = ['CifarPreResNet', 'CifarResNet', 'CifarVGG', 'WideResNet']
