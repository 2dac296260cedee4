# FCN with a narrow ResNet-18 on drawn scenes (`mmprune_ext.datasets.write_scenes` makes data/scenes).
_base_ = ['../_base_/datasets/scenes_segmentation.py', '../_base_/schedules/demo_adamw.py',
          '../_base_/runtime_segmentation.py']

norm_cfg = dict(type='BN')
# Four of five pixels are background, and each kind of shape has two of a hundred.
class_weight = [0.25, 1, 2, 2, 2, 2, 2]
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='ResNetV1c', depth=18, stem_channels=32, base_channels=32, norm_cfg=norm_cfg),
    # On all stages together, in the size of the first: sharp edges without dilation, which would cost four times more.
    decode_head=dict(
        type='FCNHead', in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 3], input_transform='resize_concat',
        channels=64, num_convs=1, kernel_size=1, concat_input=False, num_classes=7, norm_cfg=norm_cfg,
        align_corners=False, loss_decode=dict(type='CrossEntropyLoss', class_weight=class_weight)),
    auxiliary_head=dict(
        type='FCNHead', in_channels=128, in_index=2, channels=32, num_convs=1, concat_input=False, num_classes=7,
        norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', class_weight=class_weight, loss_weight=0.4)),
    test_cfg=dict(mode='whole'))

# More steps an epoch: the training is short.
train_dataloader = dict(batch_size=4)
# A test of small pictures goes faster by many at once.
val_dataloader = dict(batch_size=16)
test_dataloader = dict(batch_size=16)

# An epoch takes longer than those of the other tasks.
train_cfg = dict(max_epochs=12, val_interval=6)

default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=4, max_keep_ckpts=1))
