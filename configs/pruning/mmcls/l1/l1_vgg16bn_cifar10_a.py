# VGG-16-pruned-A of the paper: half of the first convolution and of the eighth to the last. 64.0% of the parameters and
# 34.2% of the FLOPs are removed, as published.
_base_ = './l1_vgg16bn_cifar10.py'
model = dict(target_pruning_ratio=dict.fromkeys(_base_.model.target_pruning_ratio, 0.5))
