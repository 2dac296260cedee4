# Single people in sport, 14 joints in CrowdPose's order, COCO json:
# $MMPRUNE_DATA/lspet_mini/{images/{train,val},annotations/{train,val}.json}, data/lspet_mini where it
# is not set. Source: 500 + 250 images of Leeds Sports Pose Extended (Johnson and Everingham, CVPR
# 2011), as distributed at github.com/axelcarlier/lsp; for research only. Other people in a picture
# carry no annotation, so only boxes of the ground truth make sense.
data_root = '{{$MMPRUNE_DATA:data}}/lspet_mini'

data_preprocessor = dict(
    type='PoseDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True)

# Square: these people lie and jump. Pictures are about 150 pixels wide.
codec = dict(type='MSRAHeatmap', input_size=(128, 128), heatmap_size=(32, 32), sigma=1.5)

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomBBoxTransform', shift_prob=0),
    dict(type='TopdownAffine', input_size=codec['input_size']),
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=codec['input_size']),
    dict(type='PackPoseInputs'),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=False,
    dataset=dict(type='CrowdPoseDataset', data_root=data_root, data_mode='topdown',
                 ann_file='annotations/train.json', data_prefix=dict(img='images/train/'),
                 pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=False,
    dataset=dict(type='CrowdPoseDataset', data_root=data_root, data_mode='topdown',
                 ann_file='annotations/val.json', data_prefix=dict(img='images/val/'),
                 test_mode=True, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False))
val_evaluator = [
    # COCO's measure with CrowdPose's tolerances, not CrowdPose's own by crowdedness.
    dict(type='CocoMetric', ann_file=f'{data_root}/annotations/val.json'),
    # Share of joints within a fifth of the box of their place.
    dict(type='PCKAccuracy', thr=0.2),
]
test_dataloader = val_dataloader
test_evaluator = val_evaluator
