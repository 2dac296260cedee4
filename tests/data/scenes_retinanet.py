# RetinaNet on a ResNet-18 an eighth as wide: one head for all levels of the pyramid.
_base_ = ['../../configs/_base_/datasets/scenes_detection.py', '../../configs/_base_/runtime_detection.py',
          'scenes_run.py']

model = dict(
    type='RetinaNet',
    backbone=dict(type='ResNet', depth=18, base_channels=8, frozen_stages=1, norm_eval=True),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, start_level=1, num_outs=4,
              add_extra_convs='on_input'),
    bbox_head=dict(
        type='RetinaHead', num_classes=6, in_channels=16, feat_channels=16, stacked_convs=2,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[0.5, 1.0, 2.0],
                              strides=[8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True), loss_bbox=dict(type='L1Loss')),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                   sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
                  max_per_img=50))

train_dataloader = dict(batch_size=4, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = dict(num_workers=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, max_keep_ckpts=-1))
