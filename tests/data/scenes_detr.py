# DETR an eighth as wide, of two layers each: attention of several heads, of itself and across, on the last maps.
_base_ = ['../../configs/_base_/datasets/scenes_detection.py', '../../configs/_base_/runtime_detection.py',
          'scenes_run.py']

attention = dict(embed_dims=32, num_heads=4, dropout=0.1, batch_first=True)
feed_forward = dict(embed_dims=32, feedforward_channels=64, num_fcs=2, ffn_drop=0.1,
                    act_cfg=dict(type='ReLU', inplace=True))
model = dict(
    type='DETR', num_queries=20,
    backbone=dict(type='ResNet', depth=18, base_channels=8, out_indices=(3, ), frozen_stages=1, norm_eval=True),
    neck=dict(type='ChannelMapper', in_channels=[64], kernel_size=1, out_channels=32, act_cfg=None, norm_cfg=None,
              num_outs=1),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feed_forward)),
    decoder=dict(num_layers=2, return_intermediate=True,
                 layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward)),
    positional_encoding=dict(num_feats=16, normalize=True),
    bbox_head=dict(type='DETRHead', num_classes=6, embed_dims=32,
                   loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0),
                   loss_bbox=dict(type='L1Loss', loss_weight=5.0), loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=[
        dict(type='ClassificationCost', weight=1.0), dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0)])),
    test_cfg=dict(max_per_img=20))

train_dataloader = dict(batch_size=4, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = dict(num_workers=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, max_keep_ckpts=-1))
