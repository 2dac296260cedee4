# L1 filter pruning of ResNet-20, as of ResNet-56 there: first convolution of each block, 10 / 20 / 30% of stages
# 1 / 2 / 3; those that reduce the map and the last one left whole.
_base_ = ['../../../_base_/models/resnet20_cifar.py', '../../../_base_/pruning/l1_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/resnet20_cifar10.pth',
    target_pruning_ratio={
        'backbone.layer1.*.conv1': 0.1,
        'backbone.layer2.*.conv1': 0.2,
        'backbone.layer3.*.conv1': 0.3,
        'backbone.layer2.0.conv1': 0.0,
        'backbone.layer3.0.conv1': 0.0,
        'backbone.layer3.2.conv1': 0.0,
    })
