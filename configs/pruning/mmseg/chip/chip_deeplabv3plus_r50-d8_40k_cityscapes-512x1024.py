# CHIP (arXiv 2110.13981) of the backbone of DeepLabV3+ R50-D8, Cityscapes. Trains by the segmentor's own schedule.
_base_ = ['../../../_base_/pruning/chip_r50.py',
          '../../../_base_/networks/deeplabv3plus_r50-d8_40k_cityscapes-512x1024.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(128, 256)),
    calibration=dict(num_batches=50, dataloader={{_base_.train_dataloader}}))
