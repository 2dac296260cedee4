# A narrow ResNet-18 that names the one item of a picture (`mmprune_ext.datasets.write_scenes` makes data/scenes).
_base_ = ['../_base_/datasets/scenes_classification.py', '../_base_/schedules/demo_adamw.py',
          '../_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=32, base_channels=32, num_stages=4, out_indices=(3, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=6, in_channels=256, loss=dict(type='CrossEntropyLoss')))

# More steps an epoch: the training is short.
train_dataloader = dict(batch_size=32)

default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=4, max_keep_ckpts=1))
