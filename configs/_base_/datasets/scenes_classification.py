# Single items cut out of drawn scenes, 64 x 64: tools/datasets/draw_scenes.py makes the folder.
# MMPRUNE_DATA is the folder that holds the data sets, for all tasks.
data_root = '{{$MMPRUNE_DATA:data}}/scenes'
# Sorted, as CustomDataset numbers the folders.
classes = ('person', 'plus', 'ring', 'square', 'star', 'triangle')

data_preprocessor = dict(num_classes=6, mean=[127.5] * 3, std=[64.] * 3, to_rgb=True)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=64, padding=4, padding_mode='edge'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Changes nothing here; it lets images of other sizes be drawn and tested.
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='classes/train',
                 metainfo=dict(classes=classes), pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='classes/val',
                 metainfo=dict(classes=classes), pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
