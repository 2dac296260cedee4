# CHIP (arXiv 2110.13981) on ResNet-110: 52.1% of the published FLOPs are removed.
_base_ = './chip_resnet110_cifar10_s44.py'
model = dict(target_pruning_ratio='[0.]+[0.22]*2+[0.35]*18+[0.45]*36')
