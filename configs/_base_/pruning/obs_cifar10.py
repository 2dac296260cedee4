# Channels by what their readers can make up for, on CIFAR-10; then as CHIP fine-tunes, 200 epochs.
# A config names a network of configs/_base_/models beside this file, and says by its model what is its own.
# That needs the weights of the dense network: checkpoint is a file that fits the config of the same network in
# configs/cifar (tools/convert_checkpoint.py makes one of the public weights).
_base_ = ['../datasets/cifar10_folder.py', '../schedules/chip_cifar_finetune200.py', '../default_runtime.py']
method = dict(
    type='mmprune_ext.OBS',
    mutator=dict(type='mmprune_ext.OBSMutator', demo_inputs=(32, 32)),
    calibration=dict(num_batches=8, dataloader={{_base_.train_dataloader}}))
