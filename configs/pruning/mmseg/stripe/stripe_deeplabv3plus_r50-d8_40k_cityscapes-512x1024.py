# Stripe-wise pruning (arXiv 2009.14410) of the backbone of DeepLabV3+ R50-D8, Cityscapes, by the segmentor's own schedule.
_base_ = ['../../../_base_/pruning/stripe_backbone.py',
          '../../../_base_/networks/deeplabv3plus_r50-d8_40k_cityscapes-512x1024.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint=_base_.pop('checkpoint'),
    mutator=dict(type='mmprune_ext.StripeMutator', demo_inputs=(128, 256)),
    # 40,000 iterations at lr 0.01, which falls to zero.
    sr=5e-4)
