# DCFF (arXiv 2107.06916) of VGG-16 on CIFAR-10.
# Rates: each convolution.
_base_ = ['../../../_base_/models/vgg16_cifar.py', '../../../_base_/pruning/dcff_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    target_pruning_ratio='[0.5]*2+[0.4]*2+[0.35]*3+[0.85]*6')
