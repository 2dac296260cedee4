# Stripe-wise pruning (arXiv 2009.14410) of ResNet-18 on ImageNet, alpha = 5e-6: 50.48% fewer FLOPs published. Trained
# from scratch as the example of PyTorch that the published code starts from: 90 epochs, lr / 10 at 30 and 60.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
model = dict(
    type='mmprune_ext.StripeWise',
    architecture=_base_.pop('model'),
    mutator=dict(type='mmprune_ext.StripeMutator', demo_inputs=(224, 224)),
    sr=5e-6,
    threshold=0.01)
param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
randomness = dict(seed=0)
# Writes the compact model into compact/ of the work folder when training has ended.
custom_hooks = [dict(type='mmprune_ext.ExportHook')]
