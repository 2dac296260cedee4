# ResNet-110-B of the L1 paper (table 1): 50 / 40 / 30% of stages 1 / 2 / 3.
_base_ = 'l1_resnet110_cifar10.py'
model = dict(target_pruning_ratio={'backbone.layer1.*.conv1': 0.5, 'backbone.layer2.*.conv1': 0.4})
