# Stripe-wise pruning on CIFAR-10 (arXiv 2009.14410), from scratch, 160 epochs, sr and threshold as published.
# A config names a network of configs/_base_/models beside this file, and says by its model what is its own.
# More stripes die with a larger sr: --cfg-options model.sr=2e-5
_base_ = ['../datasets/cifar10_folder.py', '../schedules/stripe_cifar_train160.py', '../default_runtime.py']
method = dict(
    type='mmprune_ext.StripeWise',
    mutator=dict(type='mmprune_ext.StripeMutator', demo_inputs=(32, 32)),
    sr=1e-5,
    threshold=0.01)
train_dataloader = dict(batch_size=64)
# Writes the compact model into compact/ of the work folder when training has ended.
custom_hooks = [dict(type='mmprune_ext.EpochSeedHook'), dict(type='mmprune_ext.ExportHook')]
