# CHIP (arXiv 2110.13981) on VGG-16-BN: 58.1% of the published FLOPs are removed.
# Ratios: the first twelve convolutions; the last one stays whole.
_base_ = ['../../../_base_/models/vgg16bn_cifar.py', '../../../_base_/pruning/chip_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/vgg16bn_cifar10.pth',
    target_pruning_ratio='[0.21]*7+[0.75]*5')
