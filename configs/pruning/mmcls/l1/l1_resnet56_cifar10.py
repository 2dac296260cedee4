# L1 filter pruning of ResNet-56: first convolution of each block, 10 / 20 / 30% of stages 1 / 2 / 3,
# sensitive convolutions left whole.
_base_ = ['../../../_base_/models/resnet56_cifar.py', '../../../_base_/pruning/l1_resnet56.py',
          '../../../_base_/pruning/l1_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/resnet56_cifar10.pth',
    target_pruning_ratio=_base_.pop('ratios'))
