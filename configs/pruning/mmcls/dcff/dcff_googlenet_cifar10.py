# DCFF (arXiv 2107.06916) of GoogLeNet on CIFAR-10, from scratch, 300 epochs.
# Rates: the stem, then 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; 1x1 of each Inception module.
_base_ = [
    '../../../_base_/models/googlenet_cifar.py',
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
        '[0.0]*2+[0.8]+[0.0]+[0.8]*2+[0.0]*2'
        '+([0.0]+[0.9]+[0.0]+[0.9]*2+[0.0]*2)*3'
        '+([0.0]+[0.8]+[0.0]+[0.8]*2+[0.0]*2)*3'
        '+([0.0]+[0.9]+[0.0]+[0.9]*2+[0.0]*2)*2'))
train_dataloader = dict(batch_size=256)
