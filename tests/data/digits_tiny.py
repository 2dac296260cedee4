# A ResNet-8 of 8 channels on some of the handwritten digits: seconds of training on one core.
# The fixture `tiny_config` of tests/conftest.py sets the data folder.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmprune_ext.CifarResNet', depth=8, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=32, loss=dict(type='CrossEntropyLoss')))

data_preprocessor = dict(num_classes=10, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)

train_dataloader = dict(
    batch_size=20,
    num_workers=0,
    dataset=dict(
        type='CustomDataset',
        data_root='',
        data_prefix='train',
        # The folders are sorted by class: every 12th image takes 120 of all ten classes.
        indices=list(range(0, 1437, 12)),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomCrop', crop_size=32, padding=2),
            dict(type='PackInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=60,
    num_workers=0,
    dataset=dict(
        type='CustomDataset',
        data_root='',
        data_prefix='val',
        indices=list(range(0, 360, 6)),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', interval=1))
custom_hooks = [dict(type='mmprune_ext.EpochSeedHook')]
randomness = dict(seed=0)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
