# CHIP (arXiv 2110.13981) on DeepLabV3+ R50-D8, Cityscapes: the backbone's channels at the
# ratios that remove 44.8% of ResNet-50's FLOPs on ImageNet. Trains by the
# segmentor's own schedule.
_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py'
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
architecture = {{_base_.model}}
checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/deeplabv3plus_r50-d8_512x1024_40k_cityscapes/deeplabv3plus_r50-d8_512x1024_40k_cityscapes_20200605_094610-d222ffcd.pth'
model = dict(
    _delete_=True,
    type='mmprune_ext.CHIP',
    architecture=architecture,
    checkpoint=checkpoint,
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(128, 256)),
    calibration=dict(num_batches=50, dataloader={{_base_.train_dataloader}}),
    target_pruning_ratio='[0.]+[0.1]*3+[0.35]*16')
