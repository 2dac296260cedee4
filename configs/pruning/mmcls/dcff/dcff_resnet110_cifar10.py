# DCFF (arXiv 2107.06916) of ResNet-110 on CIFAR-10, from scratch, 300 epochs.
# Rates: the first convolution of each block, then the outputs of the 3 stages.
_base_ = [
    '../../../_base_/models/resnet110_cifar.py',
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
        '[0.2]+[0.0]+[0.2]+[0.3]+[0.7]*2+[0.1]+[0.3]*2+[0.4]+[0.7]*2+[0.5]+[0.1]+[0.3]+[0.0]+[0.6]+[0.0]'
        '+[0.2]+[0.5]+[0.0]+[0.7]*2+[0.5]+[0.7]*2+[0.4]*2+[0.0]+[0.3]+[0.1]+[0.5]+[0.1]*3+[0.7]'
        '+[0.1]*2+[0.3]*5+[0.5]+[0.7]+[0.2]+[0.4]+[0.7]*5+[0.5]+[0.1]'
        '+[0.6]+[0.2]+[0.5]'))
train_dataloader = dict(batch_size=256)
