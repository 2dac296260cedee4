# L1 filter pruning of WRN-28-10: first convolution of each block, 10 / 20 / 30% of stages 1 / 2 / 3.
_base_ = ['../../../_base_/models/wrn28_10_cifar.py', '../../../_base_/pruning/l1_stages.py',
          '../../../_base_/pruning/l1_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/wrn28_10_cifar10.pth',
    target_pruning_ratio=_base_.pop('ratios'))
