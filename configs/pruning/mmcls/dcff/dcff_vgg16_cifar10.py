# DCFF (arXiv 2107.06916) of VGG-16 on CIFAR-10, from scratch, 300 epochs.
# Rates: each convolution.
_base_ = [
    '../../../_base_/models/vgg16_cifar.py',
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
    target_pruning_ratio='[0.5]*2+[0.4]*2+[0.35]*3+[0.85]*6')
train_dataloader = dict(batch_size=256)
