# The numbers of channels of CHIP's published ResNet-56, of which 74.1% of the FLOPs are removed.
_base_ = './obs_resnet56_cifar10_s47.py'
model = dict(target_pruning_ratio='[0.]+[0.4]*2+[0.5]*9+[0.6]*9+[0.7]*9')
