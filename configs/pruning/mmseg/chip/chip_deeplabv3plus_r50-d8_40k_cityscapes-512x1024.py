# CHIP (arXiv 2110.13981) of the backbone of DeepLabV3+ R50-D8, Cityscapes. Trains by the segmentor's own schedule.
_base_ = [
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    '../../../_base_/pruning/chip_r50.py',
]
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/deeplabv3plus_r50-d8_512x1024_40k_cityscapes/deeplabv3plus_r50-d8_512x1024_40k_cityscapes_20200605_094610-d222ffcd.pth',
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(128, 256)),
    calibration=dict(num_batches=50, dataloader={{_base_.train_dataloader}}))
