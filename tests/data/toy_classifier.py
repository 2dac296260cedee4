# One epoch of a narrow CIFAR ResNet-18 on tests/data/toy_stripes.py (its folder must be on PYTHONPATH).
custom_imports = dict(imports=['mmpretrain.models', 'mmpretrain.evaluation', 'toy_stripes'])
default_scope = 'mmpretrain'

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[96.] * 3, std=[64.] * 3, num_classes=2),
    backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8, out_indices=(3, ), style='pytorch'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=64, loss=dict(type='CrossEntropyLoss')))

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='ToyStripes', length=32, seed=0),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='ToyStripes', length=16, seed=1),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1))
randomness = dict(seed=0)
# nccl as OpenMMLab's configs have it: a run without a GPU must choose gloo by itself.
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
               dist_cfg=dict(backend='nccl'))
