# ResNet-34-pruned-A of the paper: 30% of the first convolution of each block in stages 1 to 3, without the first and the
# last block of a stage (layers 2, 8, 14, 16, 26); the last block of stage 1 is pruned, as in the paper's list.
# 7.6% of the parameters and 15.5% of the FLOPs are removed, as published; the paper counts no projections of shortcuts.
_base_ = ['mmpretrain::resnet/resnet34_8xb32_in1k.py', '../../../_base_/pruning/l1_in1k.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth',
    target_pruning_ratio={
        'backbone.layer1.[12].conv1': 0.3,
        'backbone.layer2.[12].conv1': 0.3,
        'backbone.layer3.[1234].conv1': 0.3,
    })

# As published: 20 epochs at a constant lr of 0.001.
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = []
train_cfg = dict(max_epochs=20)
