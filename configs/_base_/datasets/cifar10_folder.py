# CIFAR-10 as image folders: data/cifar10/{train,val}/<class>/*.png, ten class folders.
# Images are read as BGR and turned to RGB by the preprocessor.
data_preprocessor = dict(
    num_classes=10,
    # ImageNet's statistics, RGB, 0 to 255: what the public CIFAR ResNet checkpoints were trained
    # with. With others those checkpoints lose accuracy.
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

# Workers that live for one epoch start from the same random state in a resumed run as in one that
# was never interrupted.
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=False,
    dataset=dict(type='CustomDataset', data_root='data/cifar10', data_prefix='train',
                 pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(type='CustomDataset', data_root='data/cifar10', data_prefix='val',
                 pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
