# A few images of COCO 2017 (boxes and instance masks), all 80 classes, to try detectors that were
# trained on COCO; far too few for an AP that compares with published ones:
# $MMPRUNE_DATA/coco_mini/{images/{train,val},annotations/{train,val}.json}, data/coco_mini where it is
# not set. The folders and json of COCO itself fit as well, under these names.
data_root = '{{$MMPRUNE_DATA:data}}/coco_mini'

data_preprocessor = dict(
    type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True, pad_mask=True, pad_size_divisor=32)

# What models trained on COCO expect; smaller images lose small objects and accuracy.
scale = (1333, 800)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=False,
    dataset=dict(type='CocoDataset', data_root=data_root, ann_file='annotations/train.json',
                 data_prefix=dict(img='images/train/'),
                 filter_cfg=dict(filter_empty_gt=True, min_size=32), pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=False,
    dataset=dict(type='CocoDataset', data_root=data_root, ann_file='annotations/val.json',
                 data_prefix=dict(img='images/val/'), test_mode=True, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
# A model with masks sets metric=['bbox', 'segm'].
val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}/annotations/val.json',
                     metric=['bbox'])
test_dataloader = val_dataloader
test_evaluator = val_evaluator
