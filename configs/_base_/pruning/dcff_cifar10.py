# DCFF on CIFAR-10 (arXiv 2107.06916), from scratch, 300 epochs.
# A config names a network of configs/_base_/models beside this file, and says by its model what is its own.
_base_ = ['../datasets/cifar10_folder.py', '../schedules/dcff_cifar_train300.py', '../default_runtime.py']
method = dict(type='mmprune_ext.DCFF', mutator=dict(type='mmprune_ext.DCFFMutator', demo_inputs=(32, 32)))
train_dataloader = dict(batch_size=256)
