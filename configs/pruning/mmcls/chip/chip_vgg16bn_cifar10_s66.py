# CHIP (arXiv 2110.13981) on VGG-16-BN: 66.6% of the published FLOPs are removed.
_base_ = './chip_vgg16bn_cifar10_s58.py'
model = dict(target_pruning_ratio='[0.3]*7+[0.75]*5')
