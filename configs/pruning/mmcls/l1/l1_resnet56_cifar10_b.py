# ResNet-56-B of the L1 paper (table 1): 60 / 30 / 10% of stages 1 / 2 / 3; convolutions 18 and 34 stay whole too.
_base_ = 'l1_resnet56_cifar10.py'
model = dict(target_pruning_ratio={
    'backbone.layer1.*.conv1': 0.6,
    'backbone.layer2.*.conv1': 0.3,
    'backbone.layer3.*.conv1': 0.1,
    'backbone.layer1.8.conv1': 0.0,
    'backbone.layer2.7.conv1': 0.0,
})
