# ResNet-34-pruned-C of the paper: 20% of the outputs of stage 3, which its second convolutions and its shortcut share.
# 7.2% of the parameters and 3.37e9 FLOPs, as published (7.5% of the FLOPs there, 7.4% counted). Here one set of channels
# follows from the scores of all these layers together; the paper ranks them by the shortcut's projection.
_base_ = './l1_resnet34_8xb32_in1k_a.py'
model = dict(target_pruning_ratio={'_delete_': True, 'backbone.layer3.0.conv2': 0.2})
