# CHIP (arXiv 2110.13981) on the top-down heatmap model with ResNet-50, COCO: the backbone's channels at the
# ratios that remove 44.8% of ResNet-50's FLOPs on ImageNet. Trains by
# the model's own schedule.
_base_ = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
architecture = {{_base_.model}}
checkpoint = 'https://download.openmmlab.com/mmpose/v1/body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192-04af38ce_20220923.pth'
model = dict(
    _delete_=True,
    type='mmprune_ext.CHIP',
    architecture=architecture,
    checkpoint=checkpoint,
    mutator=dict(type='mmprune_ext.CHIPMutator', demo_inputs=(256, 192)),
    calibration=dict(num_batches=10, dataloader={{_base_.train_dataloader}}),
    target_pruning_ratio='[0.]+[0.1]*3+[0.35]*16')
