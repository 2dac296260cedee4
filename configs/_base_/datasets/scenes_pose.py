# Stick figures in drawn scenes, with COCO's 17 joints: tools/datasets/draw_scenes.py makes the folder.
# MMPRUNE_DATA is the folder that holds the data sets, for all tasks.
data_root = '{{$MMPRUNE_DATA:data}}/scenes'

data_preprocessor = dict(
    type='PoseDataPreprocessor', mean=[127.5] * 3, std=[64.] * 3, bgr_to_rgb=True)

# Width and height. The head of the model takes the same codec as its decoder, and its heatmaps must
# come out at this size.
codec = dict(type='MSRAHeatmap', input_size=(96, 128), heatmap_size=(24, 32), sigma=1.5)

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomBBoxTransform', shift_prob=0, rotate_factor=30, scale_factor=(0.8, 1.2)),
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
    num_workers=1,
    persistent_workers=False,
    dataset=dict(type='CocoDataset', data_root=data_root, data_mode='topdown',
                 ann_file='annotations/person_keypoints_train.json',
                 data_prefix=dict(img='images/train/'), pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(type='CocoDataset', data_root=data_root, data_mode='topdown',
                 ann_file='annotations/person_keypoints_val.json',
                 data_prefix=dict(img='images/val/'), test_mode=True, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False))
val_evaluator = [
    dict(type='CocoMetric', ann_file=f'{data_root}/annotations/person_keypoints_val.json'),
    # Share of joints within a tenth of the box of their place.
    dict(type='PCKAccuracy', thr=0.1),
]
test_dataloader = val_dataloader
test_evaluator = val_evaluator
