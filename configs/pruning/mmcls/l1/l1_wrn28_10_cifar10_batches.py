# l1_wrn28_10_cifar10.py on the python batches of CIFAR-10.
_base_ = ['../../../_base_/models/wrn28_10_cifar.py', '../../../_base_/pruning/l1_stages.py',
          '../../../_base_/pruning/l1_cifar10_batches.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/wrn28_10_cifar10.pth',
    target_pruning_ratio=_base_.pop('ratios'))
