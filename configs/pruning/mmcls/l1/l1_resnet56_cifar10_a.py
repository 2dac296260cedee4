# ResNet-56-A of the L1 paper (table 1): 10% of the first convolution of each block, sensitive ones left whole.
_base_ = 'l1_resnet56_cifar10.py'
model = dict(target_pruning_ratio={'backbone.layer2.*.conv1': 0.1, 'backbone.layer3.*.conv1': 0.1})
