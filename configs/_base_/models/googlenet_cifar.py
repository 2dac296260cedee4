model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmprune_ext.CifarGoogLeNet'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=1024,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
