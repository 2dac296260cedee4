# VGG-16-BN with a hidden layer of 512 before the classifier, as in CHIP and PFEC (14,991,946
# parameters). GlobalAveragePooling as neck gives the form with one linear layer.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmprune_ext.CifarVGG', depth=16),
    neck=dict(type='LinearNeck', in_channels=512, out_channels=512, gap_dim=0,
              norm_cfg=dict(type='BN1d'), act_cfg=dict(type='ReLU')),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
