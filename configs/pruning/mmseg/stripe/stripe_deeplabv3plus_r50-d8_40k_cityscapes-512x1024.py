# Stripe-wise pruning (arXiv 2009.14410) of the backbone of DeepLabV3+ R50-D8, Cityscapes, by the segmentor's own schedule.
_base_ = [
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    '../../../_base_/pruning/stripe_backbone.py',
]
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/deeplabv3plus_r50-d8_512x1024_40k_cityscapes/deeplabv3plus_r50-d8_512x1024_40k_cityscapes_20200605_094610-d222ffcd.pth',
    mutator=dict(type='mmprune_ext.StripeMutator', demo_inputs=(128, 256)),
    # 40,000 iterations at lr 0.01, which falls to zero.
    sr=5e-4)
