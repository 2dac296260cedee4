# FCN with a narrow ResNet-18 on drawn scenes (`mmprune_ext.datasets.write_scenes` makes data/scenes).
_base_ = ['../_base_/datasets/scenes_segmentation.py', '../_base_/schedules/demo_adamw.py',
          '../_base_/runtime_segmentation.py']

norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='ResNetV1c', depth=18, stem_channels=32, base_channels=32, norm_cfg=norm_cfg),
    # On all stages together, in the size of the first: sharp edges without dilation, which would cost four times more.
    decode_head=dict(
        type='FCNHead', in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 3], input_transform='resize_concat',
        channels=64, num_convs=1, kernel_size=1, concat_input=False, num_classes=7, norm_cfg=norm_cfg,
        align_corners=False, loss_decode=dict(type='CrossEntropyLoss')),
    auxiliary_head=dict(
        type='FCNHead', in_channels=128, in_index=2, channels=32, num_convs=1, concat_input=False, num_classes=7,
        norm_cfg=norm_cfg, align_corners=False, loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4)),
    test_cfg=dict(mode='whole'))

# Single images of a test are small: more of them at once.
val_dataloader = dict(batch_size=16)
test_dataloader = dict(batch_size=16)

default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=4, max_keep_ckpts=1))
