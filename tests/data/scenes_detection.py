# Faster R-CNN on a ResNet-18 an eighth as wide: shared RPN head, RoIAlign, RoI head.
_base_ = ['../../configs/_base_/datasets/scenes_detection.py', '../../configs/_base_/runtime_detection.py',
          'scenes_run.py']

boxes = dict(type='DeltaXYWHBBoxCoder')
assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.3)
model = dict(
    type='FasterRCNN',
    backbone=dict(type='ResNet', depth=18, base_channels=8, frozen_stages=1, norm_eval=True),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
    rpn_head=dict(
        type='RPNHead', in_channels=16, feat_channels=16, bbox_coder=boxes,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0],
                              strides=[4, 8, 16, 32]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss')),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=16, featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=32, roi_feat_size=7, num_classes=6,
            bbox_coder=dict(boxes, target_stds=[0.1, 0.1, 0.2, 0.2]), reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=dict(type='L1Loss'))),
    train_cfg=dict(
        rpn=dict(assigner=assigner, allowed_border=-1, pos_weight=-1, debug=False,
                 sampler=dict(type='RandomSampler', num=32, pos_fraction=0.5, add_gt_as_proposals=False)),
        rpn_proposal=dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(assigner=assigner, pos_weight=-1, debug=False,
                  sampler=dict(type='RandomSampler', num=32, pos_fraction=0.25, add_gt_as_proposals=True))),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        # No threshold: a model of a few iterations finds something, so that there is something to compare.
        rcnn=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50)))

train_dataloader = dict(batch_size=8, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = dict(num_workers=0)
# A model of a few iterations finds nothing: no best one to keep.
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, max_keep_ckpts=-1))
