# A ResNet-18 an eighth as wide.
_base_ = ['../../configs/_base_/datasets/scenes_classification.py', '../../configs/_base_/default_runtime.py',
          'scenes_run.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=6, in_channels=64, topk=(1, ),
              loss=dict(type='CrossEntropyLoss')))

train_dataloader = dict(batch_size=8, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = dict(num_workers=0)
# A model of a few iterations finds nothing: no best one to keep.
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, max_keep_ckpts=-1))
