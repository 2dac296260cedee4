# The compact form of the top-down heatmap model with ResNet-50 on COCO that dcff_topdown_heatmap_resnet50_coco.py
# trains, of plain layers.
# Its weights are those that the run exports when it ends; tools/test.py also looks for them in compact/ of
# its work folder, and takes others by --checkpoint.
_base_ = './dcff_topdown_heatmap_resnet50_coco.py'
model = dict(
    _base_.model.architecture,
    _delete_=True,
    type='mmprune_ext.CompactModel',
    architecture=_base_.model.architecture.type,
    units='{{ fileDirname }}/resnet_pose.json',
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/dcff_topdown_heatmap_resnet50_coco/compact/compact.pth'))
