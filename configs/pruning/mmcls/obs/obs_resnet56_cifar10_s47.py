# The numbers of channels of CHIP's published ResNet-56, of which 47.4% of the FLOPs are removed.
_base_ = ['../../../_base_/models/resnet56_cifar.py', '../../../_base_/pruning/obs_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='checkpoints/resnet56_cifar10.pth',
    target_pruning_ratio='[0.]+[0.15]*2+[0.4]*27')
