# FCN with an auxiliary head on a ResNet-18 (V1c) an eighth as wide.
_base_ = ['../../configs/_base_/datasets/scenes_segmentation.py', '../../configs/_base_/runtime_segmentation.py',
          'scenes_run.py']

# As mmseg has it; on one process it computes what BN does, on the CPU the Runner turns it into BN.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8, norm_cfg=norm_cfg,
                  dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
    decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=16, num_convs=2, concat_input=True,
                     num_classes=7, norm_cfg=norm_cfg, align_corners=False,
                     loss_decode=dict(type='CrossEntropyLoss')),
    auxiliary_head=dict(type='FCNHead', in_channels=32, in_index=2, channels=8, num_convs=1, concat_input=False,
                        num_classes=7, norm_cfg=norm_cfg, align_corners=False,
                        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))

train_dataloader = dict(batch_size=8, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = dict(num_workers=0)
# A model of a few iterations finds nothing: no best one to keep.
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, max_keep_ckpts=-1))
