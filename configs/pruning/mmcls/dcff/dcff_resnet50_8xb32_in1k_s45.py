# DCFF (arXiv 2107.06916) of ResNet-50: 45.3% of the published FLOPs are removed.
# Rates: the stem, the first convolutions of the 16 blocks, the second ones, the 4 stage outputs.
_base_ = './dcff_resnet50_8xb32_in1k.py'
model = dict(
    target_pruning_ratio='[0.0]+[0.35]*10+[0.3]*6+[0.4]*10+[0.3]*6+[0.1]*4')

# Batch 256, 90 epochs, lr 0.1 with 5 epochs of warm-up, a tenth of it at epochs 30, 60 and 80.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=5,
         convert_to_iter_based=True),
    dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 80], gamma=0.1),
]
train_cfg = dict(max_epochs=90)
