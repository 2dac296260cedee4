# The compact form of PointRend R50-V1c on Cityscapes that dcff_pointrend_resnet50_8xb2_cityscapes.py trains, of
# plain layers.
# Its weights are those that the run exports when it ends; tools/test.py also looks for them in compact/ of
# its work folder, and takes others by --checkpoint.
_base_ = './dcff_pointrend_resnet50_8xb2_cityscapes.py'
model = dict(
    _base_.model.architecture,
    _delete_=True,
    type='mmprune_ext.CompactModel',
    architecture=_base_.model.architecture.type,
    units='{{ fileDirname }}/resnet_seg.json',
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/dcff_pointrend_resnet50_8xb2_cityscapes/compact/compact.pth'))
