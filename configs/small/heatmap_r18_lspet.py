# Top-down heatmaps with a ResNet-18 from scratch on single people in sport.
_base_ = ['../_base_/datasets/lspet_mini.py', '../_base_/schedules/small_adamw60.py',
          '../_base_/runtime_pose.py']

model = dict(
    type='TopdownPoseEstimator',
    backbone=dict(type='ResNet', depth=18),
    head=dict(type='HeatmapHead', in_channels=512, out_channels=14,
              deconv_out_channels=(128, 128, 128), deconv_kernel_sizes=(4, 4, 4),
              loss=dict(type='KeypointMSELoss', use_target_weight=True),
              decoder={{_base_.codec}}),
    test_cfg=dict(flip_test=True, flip_mode='heatmap', shift_heatmap=True))
