# CHIP (arXiv 2110.13981) on ResNet-56: 74.1% of the published FLOPs are removed.
_base_ = './chip_resnet56_cifar10_s47.py'
model = dict(target_pruning_ratio='[0.]+[0.4]*2+[0.5]*9+[0.6]*9+[0.7]*9')
