# DCFF (arXiv 2107.06916) of ResNet-56 on CIFAR-10, from scratch, 300 epochs.
# Rates: the first convolution of each block, then the outputs of the 3 stages.
_base_ = [
    '../../../_base_/models/resnet56_cifar.py',
    '../../../_base_/datasets/cifar10_folder.py',
    '../../../_base_/schedules/dcff_cifar_train300.py',
    '../../../_base_/default_runtime.py',
]
architecture = {{_base_.model}}
model = dict(
    _delete_=True,
    type='mmprune_ext.DCFF',
    architecture=architecture,
    mutator=dict(type='mmprune_ext.DCFFMutator', demo_inputs=(32, 32)),
    target_pruning_ratio=(
        '[0.7]*2+[0.5]*3+[0.3]*2+[0.4]+[0.8]'
        '+[0.7]*2+[0.8]*4+[0.4]+[0.2]*2'
        '+[0.7]+[0.3]+[0.8]+[0.4]*2+[0.7]+[0.3]+[0.4]+[0.8]'
        '+[0.0]*3'))
train_dataloader = dict(batch_size=256)
