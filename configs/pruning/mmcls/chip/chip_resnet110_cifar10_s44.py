# CHIP (arXiv 2110.13981) on ResNet-110: 44.4% of the published FLOPs are removed.
# Ratios: the stem, the outputs of stages 1 and 2, the first convolution of each block. Stem and
# stage 1 are added to each other and take one ratio, the second.
_base_ = ['../../../_base_/models/resnet110_cifar.py', '../../../_base_/pruning/chip_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/resnet110_cifar10.pth',
    target_pruning_ratio='[0.]+[0.2]*2+[0.3]*18+[0.35]*36')
