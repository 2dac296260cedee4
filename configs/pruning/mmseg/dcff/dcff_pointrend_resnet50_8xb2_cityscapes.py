# DCFF (arXiv 2107.06916) of the backbone of PointRend R50-V1c on Cityscapes, from scratch.
# Rates: the three convolutions of the stem, then both inner convolutions and the output of each block.
# Batch 16 on 8 GPUs.
_base_ = [
    'mmseg::_base_/models/pointrend_r50.py',
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/schedules/schedule_160k.py',
    'mmseg::_base_/default_runtime.py',
    '../../../_base_/pruning/dcff.py',
]
crop_size = (512, 1024)
# Batches of images of other sizes than the crop could not be stacked.
data_preprocessor = dict(_base_.data_preprocessor, size=crop_size)
_base_.model.update(pretrained=None, data_preprocessor=data_preprocessor)
# SyncBN cannot train on machines without GPUs.
_base_.model.backbone.norm_cfg = _base_.model.decode_head[0].norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    mutator=dict(type='mmprune_ext.DCFFMutator', demo_inputs=(128, 256)),
    target_pruning_ratio='[0.0, 0.0, 0.0] + [0.35, 0.4, 0.1] * 10 + [0.3, 0.3, 0.1] * 6',
    # The run counts iterations.
    by_epoch=False,
    step_freq=200)

# The published schedule. Its decay ends halfway; the rest of the run has lr 1e-4.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005),
    clip_grad=dict(max_norm=25, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', by_epoch=False, start_factor=0.1, begin=0, end=200),
    dict(type='PolyLR', by_epoch=False, eta_min=1e-4, power=0.9, begin=200, end=80000),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=800)
randomness = dict(seed=0)
# Writes the compact model into compact/ of the work folder when training has ended.
custom_hooks = [dict(type='mmprune_ext.ExportHook')]
