# RetinaNet R50-FPN, COCO, which is pruned: its own config and its weights.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
# The first stage is pruned, too: it has to learn with the others.
model = dict(backbone=dict(frozen_stages=-1))
checkpoint = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
