# The compact form of ResNet-50 on ImageNet that dcff_resnet50_8xb32_in1k.py trains, of plain layers.
# Its weights are what tools/export_compact.py writes, into the folder of the run.
_base_ = './dcff_resnet50_8xb32_in1k.py'
model = dict(
    _delete_=True,
    type='mmprune_ext.CompactModel',
    architecture={{_base_.architecture}},
    units='{{ fileDirname }}/resnet_cls.json',
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/dcff_resnet50_8xb32_in1k/compact.pth'))
