# DCFF (arXiv 2107.06916) of ResNet-56 on CIFAR-10.
# Rates: the first convolution of each block, then the outputs of the 3 stages.
_base_ = ['../../../_base_/models/resnet56_cifar.py', '../../../_base_/pruning/dcff_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    target_pruning_ratio=(
        '[0.7]*2+[0.5]*3+[0.3]*2+[0.4]+[0.8]'
        '+[0.7]*2+[0.8]*4+[0.4]+[0.2]*2'
        '+[0.7]+[0.3]+[0.8]+[0.4]*2+[0.7]+[0.3]+[0.4]+[0.8]'
        '+[0.0]*3'))
