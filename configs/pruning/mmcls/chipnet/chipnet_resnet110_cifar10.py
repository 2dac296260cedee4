# ChipNet (arXiv 2102.07156) of ResNet-110: half of the FLOPs remain.
_base_ = ['../../../_base_/models/resnet110_cifar.py', '../../../_base_/pruning/chipnet_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/resnet110_cifar10.pth')
