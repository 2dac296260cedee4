# Faster R-CNN R50-FPN, COCO, whose backbone is pruned: its own config and its weights.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
# The first stage is pruned, too: it has to learn with the others.
model = dict(backbone=dict(frozen_stages=-1))
checkpoint = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'
