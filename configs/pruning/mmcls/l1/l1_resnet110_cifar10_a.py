# ResNet-110-A of the L1 paper (table 1): half of stage 1 alone.
_base_ = 'l1_resnet110_cifar10.py'
model = dict(target_pruning_ratio={
    'backbone.layer1.*.conv1': 0.5,
    'backbone.layer2.*.conv1': 0.0,
    'backbone.layer3.*.conv1': 0.0,
})
