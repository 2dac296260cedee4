# DCFF (arXiv 2107.06916) of GoogLeNet on CIFAR-10.
# Rates: the stem, then 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; 1x1 of each Inception module.
_base_ = ['../../../_base_/models/googlenet_cifar.py', '../../../_base_/pruning/dcff_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    target_pruning_ratio=(
        '[0.0]*2+[0.8]+[0.0]+[0.8]*2+[0.0]*2'
        '+([0.0]+[0.9]+[0.0]+[0.9]*2+[0.0]*2)*3'
        '+([0.0]+[0.8]+[0.0]+[0.8]*2+[0.0]*2)*3'
        '+([0.0]+[0.9]+[0.0]+[0.9]*2+[0.0]*2)*2'))
