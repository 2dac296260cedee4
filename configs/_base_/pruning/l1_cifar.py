# L1 filter pruning of the CIFAR networks (PFEC, arXiv 1608.08710). Fine-tunes 40 epochs.
# A config names a network of configs/_base_/models and its ratios beside the file for its data set, and says by its
# model what is its own. That needs the weights of the dense network: checkpoint is a file that fits the config of the
# same network in configs/cifar (tools/convert_checkpoint.py makes one of the public weights).
_base_ = ['../schedules/cifar_finetune40.py', '../default_runtime.py']
method = dict(type='mmprune_ext.L1Norm', mutator=dict(type='mmprune_ext.L1Mutator', demo_inputs=(32, 32)))
