# The compact form of Faster R-CNN R50-FPN on COCO that dcff_faster_rcnn_resnet50_8xb4_coco.py trains, of plain layers.
# Its weights are those that the run exports when it ends; tools/test.py also looks for them in compact/ of
# its work folder, and takes others by --checkpoint.
_base_ = './dcff_faster_rcnn_resnet50_8xb4_coco.py'
model = dict(
    _base_.model.architecture,
    _delete_=True,
    type='mmprune_ext.CompactModel',
    architecture=_base_.model.architecture.type,
    units='{{ fileDirname }}/resnet_det.json',
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/dcff_faster_rcnn_resnet50_8xb4_coco/compact/compact.pth'))
