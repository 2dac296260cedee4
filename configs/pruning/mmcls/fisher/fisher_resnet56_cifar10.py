# Group Fisher pruning (arXiv 2108.00708) of ResNet-56: half of the FLOPs remain.
_base_ = ['../../../_base_/models/resnet56_cifar.py', '../../../_base_/pruning/fisher_cifar10.py']
model = dict(
    _base_.pop('method'), architecture=_base_.pop('model'), checkpoint='checkpoints/resnet56_cifar10.pth')
