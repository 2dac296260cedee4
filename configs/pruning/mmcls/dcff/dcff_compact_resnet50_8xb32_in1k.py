# The compact form of ResNet-50 on ImageNet that dcff_resnet50_8xb32_in1k.py trains, of plain layers.
# Its weights are those that the run exports when it ends; tools/test.py also looks for them in compact/ of
# its work folder, and takes others by --checkpoint.
_base_ = './dcff_resnet50_8xb32_in1k.py'
model = dict(
    _base_.model.architecture,
    _delete_=True,
    type='mmprune_ext.CompactModel',
    architecture=_base_.model.architecture.type,
    units='{{ fileDirname }}/resnet_cls.json',
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/dcff_resnet50_8xb32_in1k/compact/compact.pth'))
