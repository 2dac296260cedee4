# ChipNet (arXiv 2102.07156) of the small ResNet-20 for handwritten digits: half of the FLOPs remain. An example that
# needs no download and runs in minutes on one core (docs/chipnet.md#an-example-in-minutes).
_base_ = '../../../demo/digits_resnet20.py'
model = dict(
    type='mmprune_ext.ChipNet',
    architecture=_base_.pop('model'),
    checkpoint='work_dirs/digits/epoch_10.pth',
    mutator=dict(type='mmprune_ext.ChipNetMutator', demo_inputs=(32, 32)),
    budget=dict(flops=0.5),
    # In 900 iterations few gates close by themselves: more of them than by default are for the weights to follow what
    # was decided.
    settle=0.3)

# One job of two parts: the search, whose settings `search` holds (its keys replace the config's own of that name,
# whole), then training of the compact model by the config's own settings.
runner_type = 'mmprune_ext.SearchRunner'
# 20 epochs of 45 iterations; the gates' rate makes up for there being so few.
search = dict(
    train_dataloader=dict(_base_.train_dataloader, batch_size=32),
    train_cfg=dict(by_epoch=True, max_epochs=20, val_interval=5),
    optim_wrapper=dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-3),
        paramwise_cfg=dict(custom_keys={'channel_gates': dict(lr_mult=25., decay_mult=0.)})),
    param_scheduler=[])

# The compact network is trained for half the epochs of the dense one, at half its rate.
train_cfg = dict(max_epochs=5)
param_scheduler = dict(eta_max=0.05)
