# DCFF (arXiv 2107.06916) of the backbone of the top-down heatmap model with ResNet-50 on COCO, from scratch.
# Rates: the stem, then both inner convolutions and the output of each block.
_base_ = [
    'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py',
    '../../../_base_/pruning/dcff.py',
]
_base_.model.backbone.init_cfg = None
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    mutator=dict(type='mmprune_ext.DCFFMutator', demo_inputs=(256, 192)),
    target_pruning_ratio='[0.0] + [0.2, 0.2, 0.1] * 10 + [0.15, 0.15, 0.1] * 6')

# The published schedule: Adam, lr 5e-4 for a batch of 512.
train_dataloader = dict(batch_size=32)
param_scheduler = [
    dict(type='LinearLR', by_epoch=False, start_factor=0.001, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=300, milestones=[170, 220, 280], gamma=0.1),
]
train_cfg = dict(max_epochs=300, val_interval=10)
randomness = dict(seed=0)
# Writes the compact model into compact/ of the work folder when training has ended.
custom_hooks = [*_base_.custom_hooks, dict(type='mmprune_ext.ExportHook')]
