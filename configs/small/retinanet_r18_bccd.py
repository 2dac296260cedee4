# RetinaNet with a ResNet-18 from scratch on blood cells.
_base_ = ['../_base_/datasets/bccd.py', '../_base_/schedules/small_adamw60.py',
          '../_base_/runtime_detection.py']

model = dict(
    type='RetinaNet',
    # From scratch, so nothing is frozen and batch statistics are learned. ImageNet weights would be
    # init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18').
    backbone=dict(type='ResNet', depth=18, frozen_stages=-1, norm_eval=False),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=128, start_level=1,
              add_extra_convs='on_input', num_outs=4),
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=128, stacked_convs=2, feat_channels=128,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=3, scales_per_octave=3,
                              ratios=[0.7, 1.0, 1.4], strides=[8, 16, 32, 64]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type='L1Loss')),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                      ignore_iof_thr=-1),
        # The focal loss takes all anchors, no sample of them.
        sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05,
                  nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
