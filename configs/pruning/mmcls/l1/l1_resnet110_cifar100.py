# L1 filter pruning of ResNet-110 on CIFAR-100: first convolution of each block, 10 / 20 / 30% of stages 1 / 2 / 3,
# sensitive convolutions left whole.
_base_ = ['../../../_base_/models/resnet110_cifar.py', '../../../_base_/pruning/l1_resnet110.py',
          '../../../_base_/pruning/l1_cifar100.py']
_base_.model.head.update(num_classes=100)
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/resnet110_cifar100.pth',
    target_pruning_ratio=_base_.pop('ratios'))
