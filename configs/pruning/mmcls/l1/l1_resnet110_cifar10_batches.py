# l1_resnet110_cifar10.py on the python batches of CIFAR-10.
_base_ = ['../../../_base_/models/resnet110_cifar.py', '../../../_base_/pruning/l1_resnet110.py',
          '../../../_base_/pruning/l1_cifar10_batches.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/resnet110_cifar10.pth',
    target_pruning_ratio=_base_.pop('ratios'))
