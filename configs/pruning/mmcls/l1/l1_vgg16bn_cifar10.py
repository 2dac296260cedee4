# L1 filter pruning of VGG-16-BN: a ratio of 0.25 on every layer that is not sensitive.
_base_ = ['../../../_base_/models/vgg16bn_cifar.py', '../../../_base_/pruning/l1_vgg16bn.py',
          '../../../_base_/pruning/l1_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/vgg16bn_cifar10.pth',
    target_pruning_ratio=dict.fromkeys(_base_.pop('insensitive'), 0.25))
