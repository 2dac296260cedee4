# ChipNet (arXiv 2102.07156) of VGG-16-BN: half of the FLOPs remain.
_base_ = ['../../../_base_/models/vgg16bn_cifar.py', '../../../_base_/pruning/chipnet_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/vgg16bn_cifar10.pth')
