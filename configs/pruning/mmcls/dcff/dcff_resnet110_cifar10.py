# DCFF (arXiv 2107.06916) of ResNet-110 on CIFAR-10.
# Rates: the first convolution of each block, then the outputs of the 3 stages.
_base_ = ['../../../_base_/models/resnet110_cifar.py', '../../../_base_/pruning/dcff_cifar10.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    target_pruning_ratio=(
        '[0.2]+[0.0]+[0.2]+[0.3]+[0.7]*2+[0.1]+[0.3]*2+[0.4]+[0.7]*2+[0.5]+[0.1]+[0.3]+[0.0]+[0.6]+[0.0]'
        '+[0.2]+[0.5]+[0.0]+[0.7]*2+[0.5]+[0.7]*2+[0.4]*2+[0.0]+[0.3]+[0.1]+[0.5]+[0.1]*3+[0.7]'
        '+[0.1]*2+[0.3]*5+[0.5]+[0.7]+[0.2]+[0.4]+[0.7]*5+[0.5]+[0.1]'
        '+[0.6]+[0.2]+[0.5]'))
