# Stripe-wise pruning (arXiv 2009.14410) of the small ResNet-20 on the handwritten digits, from scratch.
# 240 iterations instead of 125,000: sr and lr make up for it (docs/stripe.md#how-much-dies).
_base_ = '../../../demo/digits_resnet20.py'
model = dict(
    type='mmprune_ext.StripeWise',
    architecture=_base_.pop('model'),
    mutator=dict(type='mmprune_ext.StripeMutator', demo_inputs=(32, 32)),
    sr=0.009)
train_cfg = dict(max_epochs=20)
custom_hooks = [
    dict(type='mmprune_ext.EpochSeedHook'),
    # Shapes change faster than running means of batch statistics follow, in so short a training.
    dict(type='PreciseBNHook', num_samples=1437, interval=5),
    # Writes the compact model into compact/ of the work folder when training has ended.
    dict(type='mmprune_ext.ExportHook')]
