# VGG-16 with BN and one linear layer after its fifth max pooling, as in DCFF (14,728,266 parameters).
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmprune_ext.CifarVGG', depth=16, last_pool='max'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
