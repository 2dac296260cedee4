# FCOS with a narrow ResNet-18 on drawn scenes (`mmprune_ext.datasets.write_scenes` makes data/scenes).
_base_ = ['../_base_/datasets/scenes_detection.py', '../_base_/schedules/demo_adamw.py',
          '../_base_/runtime_detection.py']

model = dict(
    type='FCOS',
    # From scratch: every stage is trained and batch statistics are learned, so that they can be re-estimated.
    backbone=dict(type='ResNet', depth=18, stem_channels=32, base_channels=32, frozen_stages=-1, norm_eval=False),
    neck=dict(type='FPN', in_channels=[32, 64, 128, 256], start_level=1, out_channels=64, num_outs=3),
    bbox_head=dict(
        type='FCOSHead', num_classes=6, in_channels=64, feat_channels=64, stacked_convs=2, strides=[8, 16, 32],
        # Pictures have 128 pixels: all but the largest items are found on the finest level.
        regress_ranges=((-1, 64), (64, 128), (128, 1e8)), center_sampling=True, norm_on_bbox=True,
        centerness_on_reg=True, norm_cfg=dict(type='GN', num_groups=8),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0)),
    test_cfg=dict(nms_pre=300, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50))

default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=4, max_keep_ckpts=1))
