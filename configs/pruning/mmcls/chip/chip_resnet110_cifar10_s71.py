# CHIP (arXiv 2110.13981) on ResNet-110: 71.6% of the published FLOPs are removed.
_base_ = './chip_resnet110_cifar10_s44.py'
model = dict(target_pruning_ratio='[0.]+[0.4]*2+[0.5]*18+[0.65]*36')
