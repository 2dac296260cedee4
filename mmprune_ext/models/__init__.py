"""The CIFAR networks of the pruning papers, as backbones in the style of mmpretrain."""
from mmprune_ext.models.cifar_googlenet import CifarGoogLeNet
from mmprune_ext.models.cifar_preresnet import CifarPreResNet, WideResNet
from mmprune_ext.models.cifar_resnet import CifarResNet
from mmprune_ext.models.cifar_vgg import CifarVGG

__all__ = ['CifarGoogLeNet', 'CifarPreResNet', 'CifarResNet', 'CifarVGG', 'WideResNet']
