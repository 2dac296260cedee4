# l1_vgg16bn_cifar10.py on the python batches of CIFAR-10.
_base_ = ['../../../_base_/models/vgg16bn_cifar.py', '../../../_base_/pruning/l1_vgg16bn.py',
          '../../../_base_/pruning/l1_cifar10_batches.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/vgg16bn_cifar10.pth',
    target_pruning_ratio=dict.fromkeys(_base_.pop('insensitive'), 0.25))
