# CHIP on CIFAR-10 (arXiv 2110.13981). Fine-tunes 200 epochs.
# A config names a network of configs/_base_/models beside this file, and says by its model what is its own.
# That needs the weights of the dense network: checkpoint is a file that fits the config of the same network in
# configs/cifar (tools/convert_checkpoint.py makes one of the public weights).
_base_ = ['../datasets/cifar10_folder.py', '../schedules/chip_cifar_finetune200.py', '../default_runtime.py']
method = dict(
    type='mmprune_ext.CHIP',
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(32, 32)),
    # 5 batches of 128, as published; training takes batches of 256.
    calibration=dict(num_batches=5, dataloader={{_base_.train_dataloader}}))
train_dataloader = dict(batch_size=256)
