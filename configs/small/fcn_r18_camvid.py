# FCN with a dilated ResNet-18 and an auxiliary head from scratch on street scenes.
_base_ = ['../_base_/datasets/camvid.py', '../_base_/schedules/small_adamw60.py',
          '../_base_/runtime_segmentation.py']

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    # A sixteenth of the image's size at the end instead of a thirty-second; an eighth, as large
    # models have it, is better at poles and signs and takes four times as long.
    backbone=dict(type='ResNetV1c', depth=18, norm_cfg=norm_cfg, dilations=(1, 1, 1, 2),
                  strides=(1, 2, 2, 1), contract_dilation=True),
    decode_head=dict(type='FCNHead', in_channels=512, in_index=3, channels=128, num_convs=2,
                     concat_input=True, dropout_ratio=0.1, num_classes=11, norm_cfg=norm_cfg,
                     align_corners=False, loss_decode=dict(type='CrossEntropyLoss')),
    auxiliary_head=dict(type='FCNHead', in_channels=256, in_index=2, channels=64, num_convs=1,
                        concat_input=False, dropout_ratio=0.1, num_classes=11, norm_cfg=norm_cfg,
                        align_corners=False,
                        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4)),
    test_cfg=dict(mode='whole'))
