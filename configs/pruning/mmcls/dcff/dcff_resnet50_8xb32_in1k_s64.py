# DCFF (arXiv 2107.06916) of ResNet-50: 63.8% of the published FLOPs are removed.
_base_ = './dcff_resnet50_8xb32_in1k_s45.py'
model = dict(target_pruning_ratio='[0.0]+[0.6]*10+[0.5]*6+[0.5]*10+[0.4]*6+[0.2]*4')
