# Drawn scenes with boxes and instance masks: tools/datasets/draw_scenes.py makes the folder.
# MMPRUNE_DATA is the folder that holds the data sets, for all tasks.
data_root = '{{$MMPRUNE_DATA:data}}/scenes'
# In the order of the annotation file's categories: mmdet numbers classes by that.
metainfo = dict(
    classes=('person', 'plus', 'ring', 'square', 'star', 'triangle'),
    palette=[(220, 20, 60), (0, 0, 230), (0, 150, 150), (250, 170, 30), (106, 0, 228),
             (0, 120, 40)])

data_preprocessor = dict(
    type='DetDataPreprocessor', mean=[127.5] * 3, std=[64.] * 3, bgr_to_rgb=True, pad_mask=True,
    pad_size_divisor=32)

# Masks cost little to load at this size, and models without a mask head ignore them.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    # After Resize, so that boxes are compared in the pixels of the file.
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(type='CocoDataset', data_root=data_root, metainfo=metainfo,
                 ann_file='annotations/train.json', data_prefix=dict(img='images/train/'),
                 filter_cfg=dict(filter_empty_gt=True, min_size=4), pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
    # A batch sampler that groups by aspect ratio, mmdet's habit, has nothing to do here.
    batch_sampler=None)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(type='CocoDataset', data_root=data_root, metainfo=metainfo,
                 ann_file='annotations/val.json', data_prefix=dict(img='images/val/'),
                 test_mode=True, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
# A model with masks sets metric=['bbox', 'segm'].
val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}/annotations/val.json',
                     metric=['bbox'])
test_dataloader = val_dataloader
test_evaluator = val_evaluator
