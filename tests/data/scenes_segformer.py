# SegFormer-B0 half as wide: attention whose keys and values come from fewer places.
_base_ = ['../../configs/_base_/datasets/scenes_segmentation.py', '../../configs/_base_/runtime_segmentation.py',
          'scenes_run.py']

model = dict(
    type='EncoderDecoder',
    backbone=dict(type='MixVisionTransformer', embed_dims=16, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 4],
                  patch_sizes=[7, 3, 3, 3], sr_ratios=[8, 4, 2, 1], out_indices=(0, 1, 2, 3), mlp_ratio=2,
                  qkv_bias=True, drop_path_rate=0.1),
    decode_head=dict(type='SegformerHead', in_channels=[16, 32, 64, 64], in_index=[0, 1, 2, 3], channels=32,
                     dropout_ratio=0.1, num_classes=7, norm_cfg=dict(type='SyncBN', requires_grad=True),
                     align_corners=False, loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))

train_dataloader = dict(batch_size=4, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = dict(num_workers=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, max_keep_ckpts=-1))
