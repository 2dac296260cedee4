# L1 filter pruning of the small ResNet-20 for handwritten digits: 20% of every unit. An example that needs no download;
# with `tools/train.py --rounds 5` minutes on one core (docs/rounds.md).
_base_ = '../../../demo/digits_resnet20.py'
model = dict(
    type='mmprune_ext.L1Norm',
    architecture=_base_.pop('model'),
    checkpoint='work_dirs/digits/epoch_10.pth',
    mutator=dict(type='mmprune_ext.L1Mutator', demo_inputs=(32, 32)),
    target_pruning_ratio=0.2)

# Half the epochs of the dense network, at half its rate.
train_cfg = dict(max_epochs=5)
param_scheduler = dict(eta_max=0.05)
