# The compact form of Faster R-CNN R50-FPN on COCO that dcff_faster_rcnn_resnet50_8xb4_coco.py trains, of plain layers.
# Its weights are what tools/export_compact.py writes, into the folder of the run.
_base_ = './dcff_faster_rcnn_resnet50_8xb4_coco.py'
model = dict(
    _delete_=True,
    type='mmprune_ext.CompactModel',
    architecture={{_base_.architecture}},
    units='{{ fileDirname }}/resnet_det.json',
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/dcff_faster_rcnn_resnet50_8xb4_coco/compact.pth'))
