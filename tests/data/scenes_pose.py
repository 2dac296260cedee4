# Top-down heatmaps on a ResNet-18 an eighth as wide.
_base_ = ['../../configs/_base_/datasets/scenes_pose.py', '../../configs/_base_/runtime_pose.py',
          'scenes_run.py']

model = dict(
    type='TopdownPoseEstimator',
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    head=dict(type='HeatmapHead', in_channels=64, out_channels=17, deconv_out_channels=(16, 16, 16),
              loss=dict(type='KeypointMSELoss', use_target_weight=True), decoder={{_base_.codec}}),
    test_cfg=dict(flip_test=True, flip_mode='heatmap', shift_heatmap=True))

train_dataloader = dict(batch_size=8, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = dict(num_workers=0)
# A model of a few iterations finds nothing: no best one to keep.
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, max_keep_ckpts=-1))
