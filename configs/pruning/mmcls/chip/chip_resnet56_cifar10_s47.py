# CHIP (arXiv 2110.13981) on ResNet-56: 47.4% of the published FLOPs are removed.
# Ratios: the stem, the outputs of stages 1 and 2, the first convolution of each block. Stem and
# stage 1 are added to each other and take one ratio, the second.
# Needs the weights of the dense network: set checkpoint to a file that fits
# configs/cifar/resnet56_cifar10.py (tools/convert_checkpoint.py makes one of the public weights).
_base_ = [
    '../../../_base_/models/resnet56_cifar.py',
    '../../../_base_/datasets/cifar10_folder.py',
    '../../../_base_/schedules/chip_cifar_finetune200.py',
    '../../../_base_/default_runtime.py',
]
architecture = {{_base_.model}}
checkpoint = 'checkpoints/resnet56_cifar10.pth'
model = dict(
    _delete_=True,
    type='mmprune_ext.CHIP',
    architecture=architecture,
    checkpoint=checkpoint,
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(32, 32)),
    # 5 batches of 128, as published; training takes batches of 256.
    calibration=dict(num_batches=5, dataloader={{_base_.train_dataloader}}),
    target_pruning_ratio='[0.]+[0.15]*2+[0.4]*27')
train_dataloader = dict(batch_size=256)
