# ResNet-56 after five rounds of pruning, taught by the dense network alone.
_base_ = './l1_resnet56_cifar10_ensemble-1-5.py'
model = dict(teachers=[
    dict(config='configs/cifar/resnet56_cifar10.py', checkpoint='checkpoints/resnet56_cifar10.pth')])
