# ResNet-110 after five rounds of pruning, taught by the dense network alone.
_base_ = './l1_resnet110_cifar10_ensemble-1-5.py'
model = dict(teachers=[
    dict(config='configs/cifar/resnet110_cifar10.py', checkpoint='checkpoints/resnet110_cifar10.pth')])
