# The compact form of the top-down heatmap model with ResNet-50 on COCO that dcff_topdown_heatmap_resnet50_coco.py trains, of plain layers.
# Its weights are what tools/export_compact.py writes, into the folder of the run.
_base_ = './dcff_topdown_heatmap_resnet50_coco.py'
model = dict(
    _delete_=True,
    type='mmprune_ext.CompactModel',
    architecture={{_base_.architecture}},
    units='{{ fileDirname }}/resnet_pose.json',
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/dcff_topdown_heatmap_resnet50_coco/compact.pth'))
