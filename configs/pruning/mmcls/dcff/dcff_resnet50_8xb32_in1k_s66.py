# DCFF (arXiv 2107.06916) of ResNet-50: 66.4% of the published FLOPs are removed.
# Rates: the stem, the first convolutions of the 16 blocks, the second ones, the 4 stage outputs.
_base_ = './dcff_resnet50_8xb32_in1k.py'
model = dict(
    target_pruning_ratio='[0.0]+([0.7]*7+[0.45]*9)*2+[0.24]*3+[0.0]')

# Batch 256, 180 epochs, lr 0.01 along a cosine after 5 epochs of warm-up.
optim_wrapper = dict(optimizer=dict(lr=0.01, momentum=0.99))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=5,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, T_max=175, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=180)
