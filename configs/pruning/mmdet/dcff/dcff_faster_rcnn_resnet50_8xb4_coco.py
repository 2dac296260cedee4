# DCFF (arXiv 2107.06916) of the backbone of Faster R-CNN R50-FPN on COCO, from scratch.
# Rates: the stem, then both inner convolutions and the output of each block. Batch 32 on 8 GPUs.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py', '../../../_base_/pruning/dcff.py']
# Weights that start at random have to be trained: no ImageNet checkpoint, no stage frozen, and batch
# statistics that are learned.
_base_.model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False)
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    mutator=dict(type='mmprune_ext.DCFFMutator', demo_inputs=(256, 256)),
    target_pruning_ratio='[0.0]+[0.35,0.4,0.1]*10+[0.3,0.3,0.1]*6')

# The published schedule.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=0.0001))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[60, 80, 95], gamma=0.1)]
train_cfg = dict(max_epochs=120, val_interval=1)
auto_scale_lr = dict(base_batch_size=32)
randomness = dict(seed=0)
# Writes the compact model into compact/ of the work folder when training has ended.
custom_hooks = [dict(type='mmprune_ext.ExportHook')]
