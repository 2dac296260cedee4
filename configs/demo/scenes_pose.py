# Top-down pose by heatmaps with a narrow ResNet-18, on the stick figures of drawn scenes
# (`mmprune_ext.datasets.write_scenes` makes data/scenes).
_base_ = ['../_base_/datasets/scenes_pose.py', '../_base_/schedules/demo_adamw.py',
          '../_base_/runtime_pose.py']

model = dict(
    type='TopdownPoseEstimator',
    backbone=dict(type='ResNet', depth=18, stem_channels=32, base_channels=32),
    head=dict(
        type='HeatmapHead', in_channels=256, out_channels=17, deconv_out_channels=(64, 64, 64),
        deconv_kernel_sizes=(4, 4, 4), loss=dict(type='KeypointMSELoss', use_target_weight=True),
        decoder={{_base_.codec}}),
    test_cfg=dict(flip_test=False))

default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=4, max_keep_ckpts=1))
